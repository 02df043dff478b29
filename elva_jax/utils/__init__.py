"""Helpers without knowledge of video or models: files, trees, JSON, time limits, caches."""
