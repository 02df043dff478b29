"""Prefill: the front of a prompt through the decoder, with fewer tokens behind every merging layer.

Between two decoder segments the host reads how many tokens survived and goes on with the smallest length of the grid that holds them, so
redundant video costs less. One program runs any layer of one (batch, length); nothing depends on which length it was.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.inference import params as weights_module
from elva_jax.inference.batching import Lengths, Rows
from elva_jax.inference.params import Weights
from elva_jax.models.config import ElvaConfig
from elva_jax.models.elva import Segment, merge_batch, segments
from elva_jax.models.qwen2 import DecoderLayer, angles
from elva_jax.ops.attention import packed_attention
from elva_jax.video.layout import Kind, TokenLayout


class KeysValues(NamedTuple):
    """What later tokens see of one decoder layer; it is only read."""

    k: jax.Array  # [B, K, C, Dh]
    v: jax.Array  # [B, K, C, Dh]
    valid: jax.Array  # [B, C] bool


class Prefix(NamedTuple):
    """A prefilled batch of prompt fronts."""

    config: ElvaConfig  # the model that it was made with
    layers: tuple[KeysValues, ...]  # C is each decoder segment's own
    segments: tuple[Segment, ...]  # the decoder's pieces
    tokens: np.ndarray  # int32 [segments, B], tokens that each segment worked on
    length: np.ndarray  # int32 [B], the position where each row's text goes on


def prefill(
    config: ElvaConfig, weights: Weights, rows: Rows, merging: bool, lengths: Lengths | None = None
) -> Prefix:
    """Runs prompt fronts through the decoder and keeps the keys and values.

    Args:
      config: the model; its merging layers' own buckets are not used.
      weights: its parameters.
      rows: a padded batch.
      merging: whether the merging layers act.
      lengths: chooses the length behind each merging layer; None: the grid's smallest.
    """
    lengths = lengths or Lengths()
    pieces, last = segments(config, merging), config.decoder.num_layers - 1
    layout = TokenLayout(*(jnp.asarray(field) for field in rows.layout))
    x = _embed(config, weights._replace(layers=()), rows.patches, layout)
    size = jnp.ones(layout.kind.shape, jnp.float32)
    kept, tokens = [], []
    survivors = (rows.layout.kind != Kind.PAD).sum(axis=1)
    for piece in pieces:
        if piece.merge is not None:
            merged = _merge(config, x, layout, size, piece.merge)
            survivors = np.asarray(merged.stats.survivors)
            length = min(
                lengths(f"merge {piece.merge}", int(survivors.max())), layout.kind.shape[1]
            )
            x, layout, size = _cut((merged.x, merged.layout, merged.size), length)
        seen = _seen(config, layout)
        for index in range(piece.start, piece.stop):
            if index < last:
                x, keys_values = _layer(config, weights.layers[index], x, seen)
            else:
                keys_values = _last_layer(config, weights.layers[index], x, seen)
            kept.append(keys_values)
        tokens.append(survivors)
    return Prefix(
        config, tuple(kept), pieces, np.asarray(tokens, np.int32), np.asarray(rows.length, np.int32)
    )


class _Seen(NamedTuple):
    """What the layers of one segment need to know of its tokens."""

    cos: jax.Array  # [B, C, Dh / 2]
    sin: jax.Array  # [B, C, Dh / 2]
    segment: jax.Array  # int32 [B, C], 0 at padding


@partial(jax.jit, static_argnums=0)
def _embed(config, weights, patches, layout):
    return weights_module.embed(config, weights, patches, layout)


@partial(jax.jit, static_argnums=(0, 4))
def _merge(config, x, layout, size, index):
    return merge_batch(config, x, layout, size, index)


@partial(jax.jit, static_argnums=1)
def _cut(tree, length):
    """Keeps the first `length` tokens of everything; survivors stand in front."""
    return jax.tree.map(lambda leaf: leaf[:, :length], tree)


@partial(jax.jit, static_argnums=0)
def _seen(config, layout):
    return _Seen(*angles(config.decoder, layout.position), layout.segment)


def _run(
    config: ElvaConfig, params: Any, x: jax.Array, seen: _Seen
) -> tuple[jax.Array, KeysValues]:
    # A row is one example with its padding behind it.
    attend = partial(
        packed_attention, segment=seen.segment, single=True, implementation=config.attention
    )
    layer = DecoderLayer(config.decoder, jnp.dtype(config.dtype), parent=None)
    x, (k, v) = layer.apply({"params": params}, x, seen.cos, seen.sin, attend)
    return x, KeysValues(k.swapaxes(1, 2), v.swapaxes(1, 2), seen.segment > 0)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _layer(config, params, x, seen):
    return _run(config, params, x, seen)


@partial(jax.jit, static_argnums=0)
def _last_layer(config, params, x, seen):
    # Nobody needs the hidden states behind the last layer: without them XLA drops its attention output and MLP.
    return _run(config, params, x, seen)[1]
