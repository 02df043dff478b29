"""Pure functions over arrays: attention, RoPE, merging, pooling, segment reductions, products."""
