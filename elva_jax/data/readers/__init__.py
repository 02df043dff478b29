"""Readers of annotation formats; each gives `Example`s by index."""
