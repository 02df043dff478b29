"""The recipe of this package: its tasks, their data and weights, for `training.train.run`."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.errors import ConfigError
from elva_jax.ops.attention import choose_implementation
from elva_jax.tasks.initial_weights import frozen_trees, initial_weights
from elva_jax.tasks.open_data import open_data
from elva_jax.tasks.registry import make_task
from elva_jax.training.recipe import Recipe


def load_fitting_tokenizer(config: Config, folder: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a run, all of whose tokens the model has rows for.

    Raises:
      DataError: it cannot be loaded, or lacks tokens that a stage needs.
      ConfigError: it has more tokens than the model.
    """
    tokenizer, rows = load_tokenizer(config, folder), config.model.vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(
            f"model.vocab_size: {rows} is less than the tokenizer's {len(tokenizer)} tokens"
        )
    return tokenizer


def describe_attention(config: Config, mesh: Mesh) -> str:
    """The implementation of attention that the decoder uses on a mesh."""
    model, context = config.model, mesh.shape["context"]
    chosen = choose_implementation(model.head_dim, model.dtype, model.attention, context)
    return f"attention: {chosen}"


ELVA = Recipe(
    make_task=make_task,
    load_tokenizer=load_fitting_tokenizer,
    open_data=open_data,
    initial_weights=initial_weights,
    frozen_trees=frozen_trees,
    describe=describe_attention,
)
