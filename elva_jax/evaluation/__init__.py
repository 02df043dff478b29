"""Answer parsing, scores, baselines, reports, and the comparison of two models."""
