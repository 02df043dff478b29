"""The paper's tables of accuracy: its figures, how each is measured, and ours beside them."""
