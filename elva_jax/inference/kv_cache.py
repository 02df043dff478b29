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
) -> tuple[Float[Array, "B S H Dh"], SuffixCache]:
    """Attention of S = G * Q new tokens per row to the row's prefix and to their own suffix.

    The new keys and values are written from `slot` on; `attention_mask` says which slots each new
    token attends to then, its own among them. Returns the attended values, in the type of v, and
    the suffix cache with the new tokens.
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
    to_prefix = (batch, kv_heads, groups * queries * share)
    to_suffix = (batch, kv_heads, groups, queries * share)
    before = jnp.einsum(
        "bknd,bkcd->bknc",
        grouped.reshape(*to_prefix, width),
        prefix.k,
        preferred_element_type=jnp.float32,
    )
    before = jnp.where(prefix.valid[:, None, None], before, LOW)
    before = before.reshape(batch, kv_heads, groups, queries, share, -1)
    own = jnp.einsum(
        "bkgnd,bkgtd->bkgnt",
        grouped.reshape(*to_suffix, width),
        suffix.k,
        preferred_element_type=jnp.float32,
    )
    own = own.reshape(batch, kv_heads, groups, queries, share, slots)
    own = jnp.where(attention_mask[:, None, :, :, None], own, LOW)
    weight = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1)
    weight = weight.astype(v.dtype)
    length = prefix.k.shape[2]
    over_prefix = weight[..., :length].reshape(*to_prefix, length)
    over_suffix = weight[..., length:].reshape(*to_suffix, slots)
    out = jnp.einsum("bknc,bkcd->bknd", over_prefix, prefix.v).reshape(grouped.shape)
    out += jnp.einsum("bkgnt,bkgtd->bkgnd", over_suffix, suffix.v).reshape(grouped.shape)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(q.shape), suffix


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
