"""Tasks, which say how a stage is trained, and the registry that finds them by `stage.kind`."""
