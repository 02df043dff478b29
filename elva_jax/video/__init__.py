"""Converts video files to static arrays: reading, resizing, hybrid resolution, token layouts."""
