"""The run, the loop of a stage and its hooks, step, optimizer, metrics."""
