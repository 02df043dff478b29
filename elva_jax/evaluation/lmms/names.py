"""The values of `--model` that mean an ELVA."""

MODEL = "elva"
ALIASES = ("elva_jax",)
