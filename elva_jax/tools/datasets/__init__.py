"""`elva data`: builds data sets, counts them, and shows their records."""
