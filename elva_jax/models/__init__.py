"""Linen modules over plain parameter trees, and the FLOPs of a forward pass through them."""
