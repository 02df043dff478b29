"""Files and pixels to static arrays: reading, resizing, hybrid resolution, token layouts."""
