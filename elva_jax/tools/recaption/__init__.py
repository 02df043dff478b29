"""`elva recaption`: detailed captions by a vision-language model (paper, recaptioning)."""
