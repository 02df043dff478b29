"""Tools around training and inference: benchmarks, resource plans, captioning, data sets."""
