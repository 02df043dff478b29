"""`elva data build`: any source as ArrayRecord files, sharded, resumable, and with checksums."""
