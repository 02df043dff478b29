"""MERV (arXiv 2501.01426): several frozen vision encoders whose aligned features are fused."""
