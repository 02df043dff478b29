"""`elva bench`: efficiency of this implementation beside the paper's tables and PyTorch."""
