"""Counts of parameters and FLOPs beside the paper's figures."""
