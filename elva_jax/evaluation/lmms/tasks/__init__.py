"""Tasks for lmms-eval that it lacks; their folder is what `--include_path` takes."""
