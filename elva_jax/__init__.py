"""ELVA, an encoder-free Video-LLM (arXiv 2503.18422), in JAX and Flax."""

__version__ = "0.1.0"
