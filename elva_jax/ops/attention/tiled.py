"""Causal attention tile by tile with a running softmax, for long prompts at inference.

For a row of query tiles, over its key tiles t = 0, 1, ... up to the diagonal (as FlashAttention,
arXiv 2205.14135):

    m' = max(m, max(s_t))                            the highest score so far
    l' = l exp(m - m') + sum(exp(s_t - m'))          sum of the weights
    o' = o exp(m - m') + exp(s_t - m') v_t           weighted values; o / l at the end

Memory beyond inputs and output is that of one tile, whatever the length. A tile of one key head's
queries stays in the processor's cache, which makes it a third faster than whole rows of scores.
The loop over a row's tiles ends at the diagonal: such loops of varying length have no reverse-mode
gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from elva_jax.ops.attention.blocked import LOWEST
from elva_jax.utils.arrays import AnyArray

TILE = 256  # queries, and keys, per tile


class _Running(NamedTuple):
    """The softmax of a row of R queries over the tiles so far, in float32."""

    highest: Float[Array, "R 1"]  # m
    weight: Float[Array, "R 1"]  # l
    value: Float[Array, "R Dh"]  # o


def tiled_attention(
    q: Float[AnyArray, "B S H Dh"], k: Float[AnyArray, "B S K Dh"], v: Float[AnyArray, "B S K Dh"]
) -> Float[Array, "B S H Dh"]:
    """Causal attention over single examples."""
    batch, length, heads, width = q.shape
    kv_heads, tiles = k.shape[2], -(-length // TILE)

    def by_head(x):
        """[B, S, N, Dh] -> [B * K, N / K, tiles * TILE, Dh], padded to whole tiles."""
        padded = jnp.pad(x, ((0, 0), (0, tiles * TILE - length), (0, 0), (0, 0))).swapaxes(1, 2)
        return padded.reshape(batch * kv_heads, -1, tiles * TILE, width)

    k_transposed = by_head(k)[:, 0].swapaxes(1, 2)
    out = jax.lax.map(_attend_head, (by_head(q * width**-0.5), k_transposed, by_head(v)[:, 0]))
    out = out.reshape(batch, kv_heads, tiles, heads // kv_heads, TILE, width)
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(batch, tiles * TILE, heads, width)[:, :length]


def _attend_head(
    inputs: tuple[Float[Array, "G S Dh"], Float[Array, "Dh S"], Float[Array, "S Dh"]],
) -> Float[Array, "tiles G TILE Dh"]:
    """The G query heads of one key head: one row of tiles after another."""
    q_GxSxDh, k_DhxS, v_SxDh = inputs
    groups, length, width = q_GxSxDh.shape
    rows = groups * TILE

    def attend_row(row):
        q_tile = jax.lax.dynamic_slice_in_dim(q_GxSxDh, row * TILE, TILE, axis=1)
        q_RxDh = q_tile.reshape(rows, width)

        def add_tile(tile, running, *, diagonal=False):
            k_DhxT = jax.lax.dynamic_slice_in_dim(k_DhxS, tile * TILE, TILE, axis=1)
            v_TxDh = jax.lax.dynamic_slice_in_dim(v_SxDh, tile * TILE, TILE, axis=0)
            score = jnp.dot(q_RxDh, k_DhxT, preferred_element_type=jnp.float32)
            if diagonal:
                lower = jnp.tril(jnp.ones((TILE, TILE), bool))[None]
                masked = jnp.where(lower, score.reshape(groups, TILE, TILE), LOWEST)
                score = masked.reshape(rows, TILE)
            highest = jnp.maximum(running.highest, jnp.max(score, axis=-1, keepdims=True))
            fade, weight = jnp.exp(running.highest - highest), jnp.exp(score - highest)
            value = jnp.dot(weight.astype(v_TxDh.dtype), v_TxDh, preferred_element_type=jnp.float32)
            return _Running(
                highest,
                running.weight * fade + jnp.sum(weight, axis=-1, keepdims=True),
                running.value * fade + value,
            )

        start = _Running(
            jnp.full((rows, 1), LOWEST), jnp.zeros((rows, 1)), jnp.zeros((rows, width))
        )
        done = add_tile(row, jax.lax.fori_loop(0, row, add_tile, start), diagonal=True)
        return (done.value / done.weight).astype(v_SxDh.dtype).reshape(groups, TILE, width)

    return jax.lax.map(attend_row, jnp.arange(length // TILE))
