"""Prefill: the front of a prompt through the decoder, segment by segment, with fewer tokens behind every merging layer.

Between two segments the host reads how many tokens survived and goes on with the smallest length of the grid that holds them, so redundant
video costs less. Compiled programs belong to (segment, batch, length) of that grid; nothing depends on which length it was.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.inference.rows import Lengths, Rows
from elva_jax.models.config import ElvaConfig
from elva_jax.models.elva import Elva, segments
from elva_jax.video.layout import Kind, TokenLayout


class KeysValues(NamedTuple):
    """What later tokens see of one decoder segment; it is only read."""

    k: jax.Array  # [L, B, C, K, Dh]
    v: jax.Array  # [L, B, C, K, Dh]
    valid: jax.Array  # [B, C] bool


class Prefix(NamedTuple):
    """A prefilled batch of prompt fronts."""

    segments: tuple[KeysValues, ...]  # in order; C is each segment's own
    length: jax.Array  # int32 [B], the position where each row's text goes on
    tokens: np.ndarray  # int32 [segments, B], tokens that each segment worked on


def prefill(config: ElvaConfig, params: Any, rows: Rows, merging: bool, lengths: Lengths | None = None) -> Prefix:
    """Runs prompt fronts through the decoder and keeps the keys and values.

    Args:
      config: the model; its merging layers' own buckets are not used.
      params: the parameters of `Elva`.
      rows: a padded batch.
      merging: whether the merging layers act.
      lengths: chooses the length behind each merging layer; None: the grid's smallest.
    """
    lengths = lengths or Lengths()
    layout = TokenLayout(*(jnp.asarray(field) for field in rows.layout))
    x = _embed(config, params, rows.patches, layout)
    size = jnp.ones(layout.kind.shape, jnp.float32)
    kept, tokens = [], []
    survivors = (rows.layout.kind != Kind.PAD).sum(axis=1)
    for piece in segments(config, merging):
        if piece.merge is not None:
            merged = _merge(config, params, x, layout, size, piece.merge)
            survivors = np.asarray(merged.stats.survivors)
            length = min(lengths(f"merge {piece.merge}", int(survivors.max())), layout.kind.shape[1])
            x, layout, size = _cut((merged.x, merged.layout, merged.size), length)
        x, keys_values = _layers(config, params, x, layout, piece.start, piece.stop)
        kept.append(keys_values)
        tokens.append(survivors)
    return Prefix(tuple(kept), jnp.asarray(rows.length, jnp.int32), np.asarray(tokens, np.int32))


@partial(jax.jit, static_argnums=0)
def _embed(config, params, patches, layout):
    return Elva(config).apply({"params": params}, patches, layout, method="embed")


@partial(jax.jit, static_argnums=(0, 5))
def _merge(config, params, x, layout, size, index):
    return Elva(config).apply({"params": params}, x, layout, size, index, method="merge")


@partial(jax.jit, static_argnums=1)
def _cut(tree, length):
    """Keeps the first `length` tokens of everything; survivors stand in front."""
    return jax.tree.map(lambda leaf: leaf[:, :length], tree)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _layers(config, params, x, layout, start, stop):
    x, (k, v) = Elva(config).apply({"params": params}, x, layout, start, stop, method="layers")
    # Nobody needs the hidden states behind the last layer: without them XLA drops its attention output and MLP.
    return None if stop == config.decoder.num_layers else x, KeysValues(k, v, layout.kind != Kind.PAD)
