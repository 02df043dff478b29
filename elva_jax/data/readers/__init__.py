"""Readers of annotation formats: sequences of `Example`s."""
