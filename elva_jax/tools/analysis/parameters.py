"""Parameter counts of a configuration, without allocating parameters."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.models.elva import abstract_params
from elva_jax.models.towers.build import input_shape, make_tower


def abstract_parameters(config: ModelConfig) -> dict[str, Any]:
    """The model's parameter tree as `jax.ShapeDtypeStruct`s, without partitioning boxes."""
    return nn.unbox(abstract_params(config))


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Counts by part: patch_embed, embed_tokens, layers, norm, lm_head (0 if tied) and total."""
    tree = abstract_parameters(config)
    decoder = tree["decoder"]
    counts = {"patch_embed": _size(tree["patch_embed"])}
    counts |= {
        name: _size(decoder.get(name, {})) for name in ("embed_tokens", "layers", "norm", "lm_head")
    }
    return counts | {"total": sum(counts.values())}


def count_tower(tower: TeacherConfig) -> int:
    """Parameters of a vision tower, the parts included whose features are not read."""
    module, pixels = make_tower(tower), jax.ShapeDtypeStruct(input_shape(tower), jnp.float32)
    return _size(jax.eval_shape(module.init, jax.random.key(0), pixels))


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
