"""Configurations: the schema, config files, mixtures, JSON."""
