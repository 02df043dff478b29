"""Asks a model the questions of benchmarks: batched, by several processes, and resumable."""
