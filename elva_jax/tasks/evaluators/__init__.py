"""Measurements on held-out data while a stage trains."""
