"""Tiny models, tokenizers, videos and data for tests and examples: seeded, and made in seconds.

Example:
  >>> from elva_jax import testing
  >>> model = testing.tiny_model()
  >>> model.answer(testing.tiny_video(), "What moves?", max_new_tokens=4)
  '...'
"""

from elva_jax.testing.data import write_dataset, write_video
from elva_jax.testing.media import endless_animation, tiny_layout, tiny_video
from elva_jax.testing.models import random_params, tiny_config, tiny_model, tiny_tokenizer

__all__ = [
    "endless_animation",
    "random_params",
    "tiny_config",
    "tiny_layout",
    "tiny_model",
    "tiny_tokenizer",
    "tiny_video",
    "write_dataset",
    "write_video",
]
