"""What a stage trains: one module per task, and the registry that finds it by `stage.kind`."""
