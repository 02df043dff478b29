"""Public benchmarks: one module per file format, one table of them, and how they are scored."""
