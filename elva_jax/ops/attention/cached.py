r"""Causal attention of a chunk of tokens to a cache that holds the tokens before it, and itself.

                 cache [S]
                 earlier chunks      chunk
    chunk [Q]    # # # # # # # # # # \ . . .   . . .       # attended    . later, or still empty
                 # # # # # # # # # # # \ . .   . . .
                 # # # # # # # # # # # # \ .   . . .

Parts of the keys are attended to one after the other, and their results a with log-sum-exp l are
joined:  l' = log(e^l1 + e^l2),  a' = a1 e^(l1 - l') + a2 e^(l2 - l').  Memory beyond inputs and
output is that of one part, whatever the length of the cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from elva_jax.ops.attention.blocked import LOWEST
from elva_jax.ops.attention.dispatch import UNSPLIT, choose_implementation
from elva_jax.ops.attention.frames import check_frame_attention
from elva_jax.ops.attention.running import add_keys, nothing
from elva_jax.ops.attention.stand_in import stand_in

QUERIES, KEYS = 256, 256  # of one tile
WINDOW = 8192  # keys of the cache per call of the kernel


class Cached(NamedTuple):
    """Keys and values by key head; the chunk's own stand at its place."""

    k: Float[Array, "B K S Dh"]
    v: Float[Array, "B K S Dh"]


class _Part(NamedTuple):
    """Attention to a part of the keys."""

    value: Float32[Array, "B Q H Dh"]
    lse: Float32[Array, "B Q H"]  # log-sum-exp of the scores


def cached_attention(
    q: Float[Array, "B Q H Dh"],
    k: Float[Array, "B Q K Dh"],
    v: Float[Array, "B Q K Dh"],
    cached: Cached,
    start: Int[Array, ""],
    *,
    reach: Int[Array, "B Q"] | None = None,
    implementation: str = "auto",
    split: PartitionSpec = UNSPLIT,
) -> Float[Array, "B Q H Dh"]:
    """Attention of Q tokens of single examples, the first of which is token `start`.

    Args:
      q: queries; H is a multiple of K, and query head h reads key head h // (H / K).
      k: the chunk's keys.
      v: the chunk's values.
      cached: keys and values up to the chunk's last ones; what comes later is not read.
      start: tokens before the chunk.
      reach: the last token that each query may attend to, within the chunk, for frames that are
        attended to in both directions; None: causal.
      implementation: as in `packed_attention`.
      split: how the current mesh splits rows, sequence (not at all) and heads.

    Returns:
      The attended values in the type of v; the softmax is computed in float32. No gradient.
    """
    backend = "gpu" if stand_in() else ""
    chosen = choose_implementation(q.shape[-1], q.dtype, implementation, backend=backend)
    fused = chosen.name == "cudnn"
    attend: Any = _by_kernel if fused else _by_tiles
    if reach is not None:
        check_frame_attention(implementation, split)
    if not jax.sharding.get_abstract_mesh().empty:
        by_head: Any = PartitionSpec(split[0], split[2], None, None)
        rows = None if reach is None else PartitionSpec(split[0], None)
        specs = (split, split, split, Cached(by_head, by_head), PartitionSpec(), rows)
        attend = jax.shard_map(attend, in_specs=specs, out_specs=split, check_vma=False)
    return attend(q, k, v, cached, jnp.asarray(start, jnp.int32), reach)


def _by_kernel(
    q: Array, k: Array, v: Array, cached: Cached, start: Int[Array, ""], reach: None
) -> Array:
    """By cuDNN's kernel: over the chunk itself, and over windows of what stands before it."""
    del reach
    batch, length = q.shape[0], cached.k.shape[2]
    size = min(WINDOW, length)

    def widen(value: Array, lse: Array) -> _Part:
        return _Part(value.astype(jnp.float32), lse.astype(jnp.float32))

    def add_window(index: Array, done: _Part) -> _Part:
        first = jnp.minimum(index * size, length - size)
        # The last window begins earlier where it would pass the end: its keys are rolled to the
        # front, so that those that are new come first.
        skipped = index * size - first

        def cut(cache: Array) -> Array:
            window = jax.lax.dynamic_slice_in_dim(cache, first, size, axis=2).swapaxes(1, 2)
            return jnp.roll(window, -skipped, axis=1)

        used = jnp.full(batch, jnp.minimum(start - index * size, size), jnp.int32)
        queries = jnp.full(batch, q.shape[1], jnp.int32)
        part = widen(
            *_kernel(
                q,
                cut(cached.k),
                cut(cached.v),
                query_seq_lengths=queries,
                key_value_seq_lengths=used,
            )
        )
        return _join(done, part)

    own = widen(*_kernel(q, k, v, is_causal=True))
    return jax.lax.fori_loop(0, -(-start // size), add_window, own).value.astype(v.dtype)


def _kernel(q: Array, k: Array, v: Array, **options: Any) -> tuple[Array, Array]:
    """The values and log-sum-exps of cuDNN's kernel, or of the plan's stand-in for it."""
    if replacement := stand_in():
        return replacement(q, k, v), jnp.sum(q.astype(jnp.float32), axis=-1)
    attend: Any = partial(jax.nn.dot_product_attention, return_residual=True)
    return attend(q, k, v, implementation="cudnn", **options)


def _join(one: _Part, other: _Part) -> _Part:
    lse = jnp.logaddexp(one.lse, other.lse)
    shares = [jnp.exp(part.lse - lse)[..., None] for part in (one, other)]
    return _Part(one.value * shares[0] + other.value * shares[1], lse)


def _by_tiles(
    q: Array,
    k: Array,
    v: Array,
    cached: Cached,
    start: Int[Array, ""],
    reach: Int[Array, "B Q"] | None,
) -> Array:
    """A running softmax over tiles of keys, for one tile of queries after the other."""
    del k, v  # the cache holds them
    batch, queries, heads, width = q.shape
    kv_heads, length = cached.k.shape[1:3]
    share, rows, keys = heads // kv_heads, min(QUERIES, queries), min(KEYS, length)
    tiles = -(-queries // rows)
    padded = jnp.pad(q * width**-0.5, ((0, 0), (0, tiles * rows - queries), (0, 0), (0, 0)))
    by_tile = padded.reshape(batch, tiles, rows, kv_heads, share, width)
    by_tile = by_tile.transpose(1, 0, 3, 4, 2, 5).reshape(tiles, batch, kv_heads, -1, width)
    last = jnp.arange(tiles * rows)[None]  # the last key of each query, from the chunk's first
    if reach is not None:
        last = jnp.pad(reach, ((0, 0), (0, tiles * rows - queries)), mode="edge")
    last_by_tile = start + last.reshape(-1, tiles, rows).swapaxes(0, 1)

    def attend_tile(inputs):
        last, q_BxKxRxDh = inputs

        def add_tile(index, running):
            # The last tile of keys begins earlier where it would pass the end.
            first = jnp.minimum(index * keys, length - keys)
            k_tile, v_tile = (
                jax.lax.dynamic_slice_in_dim(cache, first, keys, axis=2) for cache in cached
            )
            score = jnp.einsum(
                "bkrd,bktd->bkrt", q_BxKxRxDh, k_tile, preferred_element_type=jnp.float32
            )
            key = first + jnp.arange(keys)[None, None]
            mask = jnp.tile((key >= index * keys) & (key <= last[..., None]), (1, share, 1))
            score = jnp.where(mask[:, None], score, LOWEST)
            return add_keys(running, score, v_tile)

        # The first key is attended to by all, so no maximum stays LOWEST after the first tile.
        end = jnp.minimum(jnp.max(last) + 1, length)
        none = nothing(*q_BxKxRxDh.shape)
        found = jax.lax.fori_loop(0, -(-end // keys), add_tile, none)
        return found.attended.astype(cached.v.dtype)

    out = jax.lax.map(attend_tile, (last_by_tile, by_tile))
    out = out.reshape(tiles, batch, kv_heads, share, rows, width).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(batch, tiles * rows, heads, width)[:, :queries]
