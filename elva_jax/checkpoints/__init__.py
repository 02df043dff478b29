"""Saved steps of a run: format, saving, restoring, checksums, and a mirror on other storage."""
