"""`elva recaption`: detailed captions for images and videos by a vision-language model (paper, recaptioning)."""
