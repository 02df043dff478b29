"""Tasks, which say how a stage is trained: one module for each, and the registry that finds it by `stage.kind`."""
