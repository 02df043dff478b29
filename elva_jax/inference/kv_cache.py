"""Keys and values, and new text tokens that attend to them.

A row's *prefix* (chat header and videos) is prefilled once and only read. Its G *suffixes*
(questions and their answers) attend to the prefix and to their own past:

    row b:   prefix ──┬── suffix 0:  question, answer …
                      └── suffix 1:  question, answer …

Arrays are [B, G, Q]: B rows, G suffixes per row, Q new tokens per suffix. All suffixes share the
keys and values of the prefix without a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.params import Weights, text_embeddings
from elva_jax.models.qwen2 import DecoderLayer
from elva_jax.ops.attention import running

MOST_SCORES = 2**27  # bytes of scores over a prefix above which its keys are taken in tiles
FEWEST_KEYS = 256  # of a tile
LOW = float(jnp.finfo(jnp.float32).min)


class PrefixCache(NamedTuple):
    """Keys and values of the prefixes in one decoder layer."""

    k: Float[Array, "B K C Dh"]
    v: Float[Array, "B K C Dh"]
    valid: Bool[Array, "B C"]  # False at padding


class SuffixCache(NamedTuple):
    """Keys and values of the suffixes in one decoder layer, T slots each."""

    k: Float[Array, "B K G T Dh"]
    v: Float[Array, "B K G T Dh"]


def empty_suffix(
    config: ModelConfig, batch: int, groups: int, slots: int
) -> tuple[SuffixCache, ...]:
    """The suffix cache of every layer, with `slots` free slots."""
    shape = (batch, config.num_kv_heads, groups, slots, config.head_dim)

    def zeros() -> Float[Array, "B K G T Dh"]:
        return split_heads(jnp.zeros(shape, config.dtype))

    return tuple(SuffixCache(zeros(), zeros()) for _ in range(config.num_layers))


def split_heads(cache: Float[Array, "B K *rest"]) -> Float[Array, "B K *rest"]:
    """A cache, split over the mesh in use by rows and key-value heads."""
    return nn.with_logical_constraint(cache, ("batch", "kv_heads", *(None,) * (cache.ndim - 2)))


def grouped_attention(
    q: Float[Array, "B S H Dh"],
    k: Float[Array, "B S K Dh"],
    v: Float[Array, "B S K Dh"],
    prefix: PrefixCache,
    suffix: SuffixCache,
    attention_mask: Bool[Array, "B G Q T"],
    slot: Int[Array, ""] | int,
    most_scores: int = MOST_SCORES,
) -> tuple[Float[Array, "B S H Dh"], SuffixCache]:
    """Attention of S = G * Q new tokens per row to the row's prefix and to their own suffix.

    The new keys and values are written from `slot` on; `attention_mask` says which slots each new
    token attends to then, its own among them. Scores over the prefix take up to `most_scores` bytes
    at a time, so that memory does not grow with the prefix. Returns the attended values, in the
    type of v, and the suffix cache with the new tokens.
    """
    batch, groups, queries, slots = attention_mask.shape
    kv_heads, width = k.shape[2:]
    share = q.shape[2] // kv_heads

    def write(old, new):
        new = new.reshape(batch, groups, queries, kv_heads, width).transpose(0, 3, 1, 2, 4)
        new = split_heads(new.astype(old.dtype))
        return split_heads(jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=3))

    suffix = SuffixCache(write(suffix.k, k), write(suffix.v, v))
    grouped = q.reshape(batch, groups, queries, kv_heads, share, width)
    grouped = grouped.transpose(0, 3, 1, 2, 4, 5) * width**-0.5
    # The prefix takes one plain product for all suffixes, the suffixes one each.
    to_prefix = grouped.reshape(batch, kv_heads, groups * queries * share, width)
    to_suffix = grouped.reshape(batch, kv_heads, groups, queries * share, width)
    own = jnp.einsum("bkgnd,bkgtd->bkgnt", to_suffix, suffix.k, preferred_element_type=jnp.float32)
    own = own.reshape(batch, kv_heads, groups, queries, share, slots)
    own = jnp.where(attention_mask[:, None, :, :, None], own, LOW)
    keys = max(most_scores // (4 * batch * kv_heads * to_prefix.shape[2]), FEWEST_KEYS)
    if keys < prefix.k.shape[2]:
        out = _in_tiles(to_prefix, prefix, own, suffix.v, keys).astype(v.dtype)
    else:
        out = _in_one_piece(to_prefix, prefix, own, suffix.v)
    out = out.reshape(grouped.shape)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(q.shape), suffix


def _in_one_piece(
    q: Float[Array, "B K N Dh"],
    prefix: PrefixCache,
    own: Float32[Array, "B K G Q R T"],
    own_v: Float[Array, "B K G T Dh"],
) -> Float[Array, "B K N Dh"]:
    """Attention of N = G * Q * R queries to the prefix and, with scores `own`, to their suffix."""
    before = jnp.einsum("bknd,bkcd->bknc", q, prefix.k, preferred_element_type=jnp.float32)
    before = jnp.where(prefix.valid[:, None, None], before, LOW)
    before = before.reshape(*own.shape[:-1], -1)
    weight = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1)
    weight = weight.astype(own_v.dtype)
    length, (*to_suffix, slots, _) = prefix.k.shape[2], own_v.shape
    over_prefix = weight[..., :length].reshape(*q.shape[:3], length)
    over_suffix = weight[..., length:].reshape(*to_suffix, -1, slots)
    out = jnp.einsum("bknc,bkcd->bknd", over_prefix, prefix.v)
    return out + jnp.einsum("bkgnt,bkgtd->bkgnd", over_suffix, own_v).reshape(q.shape)


def _in_tiles(
    q: Float[Array, "B K N Dh"],
    prefix: PrefixCache,
    own: Float32[Array, "B K G Q R T"],
    own_v: Float[Array, "B K G T Dh"],
    keys: int,
) -> Float32[Array, "B K N Dh"]:
    """`_in_one_piece` with the scores over `keys` tokens of the prefix at a time."""
    batch, kv_heads, groups, queries, share, slots = own.shape
    width, length = q.shape[-1], prefix.k.shape[2]
    to_suffix = (batch, kv_heads, groups, queries * share)
    after = running.add_keys(
        running.nothing(*to_suffix, width), own.reshape(*to_suffix, slots), own_v
    )

    def add_tile(index: Array, done: running.Running) -> running.Running:
        # The last tile begins earlier where it would pass the end.
        first = jnp.minimum(index * keys, length - keys)
        k, v = (
            jax.lax.dynamic_slice_in_dim(cache, first, keys, axis=2)
            for cache in (prefix.k, prefix.v)
        )
        valid = jax.lax.dynamic_slice_in_dim(prefix.valid, first, keys, axis=1)
        valid &= (first + jnp.arange(keys) >= index * keys)[None]
        score = jnp.einsum("bknd,bkcd->bknc", q, k, preferred_element_type=jnp.float32)
        return running.add_keys(done, jnp.where(valid[:, None, None], score, LOW), v)

    start = running.Running(*(array.reshape(*q.shape[:3], -1) for array in after))
    return jax.lax.fori_loop(0, -(-length // keys), add_tile, start).attended


def append_tokens(
    config: ModelConfig,
    weights: Weights,
    prefix: tuple[PrefixCache, ...],
    suffix: tuple[SuffixCache, ...],
    slot: Int[Array, ""] | int,
    token: Int[Array, "B G Q"],
    cos_sin: tuple[Float32[Array, "B S F"], Float32[Array, "B S F"]],
    attention_mask: Bool[Array, "B G Q T"],
) -> tuple[Float[Array, "B G Q D"], tuple[SuffixCache, ...]]:
    """Runs Q new text tokens of every suffix through the decoder.

    `cos_sin` are RoPE's of the S = G * Q tokens of each row (`long_context.row_cos_sin`).
    Returns the last layer's output and the suffix caches with the new tokens.
    """
    batch = token.shape[0]
    x = text_embeddings(config, weights, token.reshape(batch, -1))
    cos, sin = cos_sin
    layer = DecoderLayer(config, parent=None)

    # Within a program it is traced and lowered once for all layers of the same shapes.
    @jax.jit
    def run_layer(params, x, before, own):
        written: list[SuffixCache] = []

        def attend(q, k, v):
            out, new = grouped_attention(q, k, v, before, own, attention_mask, slot)
            written.append(new)
            return out

        x, _ = layer.apply({"params": params}, x, cos, sin, attend)
        return x, written[0]

    written = []
    for params, before, own in zip(weights.layers, prefix, suffix, strict=True):
        x, new = run_layer(params, x, before, own)
        written.append(new)
    return x.reshape(*token.shape, -1), tuple(written)
