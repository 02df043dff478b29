"""A tiny model with random weights, its configuration and its tokenizer."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from elva_jax.config import schema
from elva_jax.config.schema import ModelConfig
from elva_jax.config.serialize import freeze
from elva_jax.data.tokenizer import build
from elva_jax.inference.model import ElvaModel
from elva_jax.models.elva import abstract_params

TEXTS = (
    "What moves? Where to? What color is the square? How many squares are there? And now?",
    "The red square moves to the right. A blue square, a green square, and noise.",
    "Describe the video. Who are you? Answer with the letter. left right up down yes no 1 2 3",
)


def tiny_config(**model: Any) -> ConfigDict:
    """The configuration of a run: 3 layers of width 32, with merging before two of them.

    Args:
      **model: other values of its group `model`.

    Example:
      >>> from elva_jax import testing
      >>> testing.tiny_config(hidden_size=64).model.hidden_size
      64
    """
    config = schema.base()
    config.name = "tiny"
    config.model.update(
        vocab_size=328,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=100.0,
        patch_size=8,
        patch_width=16,
        dtype="float32",
        max_position=512,
        tie_embeddings=False,
        merge_layers=(1, 2),
        merge_policies=("threshold", "both"),
        merge_thresholds=(0.6, 0.9),
        merge_ratios=(1.0, 0.6),
    )
    config.model.update(model)
    config.stages.video = stage = schema.stage()
    stage.merging, stage.batch_size = True, 2
    stage.data.update(num_frames=4, longest_edge=32, system_prompt="Be brief.")
    stage.data.update(seq_len=192, max_patches=128, max_frames=8)
    config.curriculum = ("video",)
    return config


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A ChatML tokenizer of a few words and all bytes; it fits the vocabulary of `tiny_config`.

    Example:
      >>> from elva_jax import testing
      >>> tokenizer = testing.tiny_tokenizer()
      >>> tokenizer.decode(tokenizer.encode("What moves?"))
      'What moves?'
    """
    with tempfile.TemporaryDirectory() as folder:
        return build(TEXTS, folder, 320, words=("red", "green", "blue"))


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.16) -> Any:
    """Parameters of `models.elva.Elva`, wide enough that attention is far from uniform.

    Args:
      config: the model.
      seed: of the draws.
      scale: standard deviation of all but the norms, which are 1.
    """
    rng, shapes = np.random.default_rng(seed), abstract_params(config)

    def draw(path, leaf):
        if "scale" in jax.tree_util.keystr(path):
            return jnp.ones(leaf.shape, jnp.float32)
        return jnp.asarray(rng.normal(0, scale, leaf.shape).astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))


def tiny_model(seed: int = 0, **model: Any) -> ElvaModel:
    """A model with random weights that depends on every token it reads.

    Args:
      seed: of the weights.
      **model: other values of the configuration's group `model`.

    Example:
      >>> from elva_jax import testing
      >>> testing.tiny_model(num_layers=4).config.model.num_layers
      4
    """
    config = tiny_config(**model)
    params = random_params(freeze(config).model, seed)
    return ElvaModel(config, params, tiny_tokenizer())
