"""`elva data build`: any source into ArrayRecord files, sharded, resumable and checksummed, with a manifest."""
