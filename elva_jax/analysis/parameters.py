"""Parameter counts of a configuration, without allocating any."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import numpy as np

from elva_jax.models.config import ElvaConfig
from elva_jax.models.elva import Elva
from elva_jax.video.layout import Clip, Text, build_layout


def abstract_parameters(config: ElvaConfig):
    """The model's parameter tree as `jax.ShapeDtypeStruct`s, without partitioning boxes."""
    layout = jax.tree.map(lambda field: field[None], build_layout([Clip([(1, 1)]), Text([0])]))
    patches = np.zeros((1, 1, config.patch.patch_size**2 * 3), np.uint8)
    return nn.unbox(jax.eval_shape(Elva(config).init, jax.random.key(0), patches, layout))["params"]


def count_parameters(config: ElvaConfig) -> dict[str, int]:
    """Counts by part: patch_embed, embed_tokens, layers, norm, lm_head (0 where tied) and total."""
    tree = abstract_parameters(config)
    decoder = tree["decoder"]
    counts = {"patch_embed": _size(tree["patch_embed"])}
    counts |= {name: _size(decoder.get(name, {})) for name in ("embed_tokens", "layers", "norm", "lm_head")}
    return counts | {"total": sum(counts.values())}


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
