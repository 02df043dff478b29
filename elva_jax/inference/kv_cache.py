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

import jax
import jax.numpy as jnp

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.params import Weights
from elva_jax.models.qwen2 import DecoderLayer, rope_cos_sin

LOW = float(jnp.finfo(jnp.float32).min)


class PrefixCache(NamedTuple):
    """Keys and values of the prefixes in one decoder layer."""

    k: jax.Array  # [B, K, C, Dh]
    v: jax.Array  # [B, K, C, Dh]
    valid: jax.Array  # [B, C] bool, False at padding


class SuffixCache(NamedTuple):
    """Keys and values of the suffixes in one decoder layer, T slots each."""

    k: jax.Array  # [B, K, G, T, Dh]
    v: jax.Array  # [B, K, G, T, Dh]


def empty_suffix(
    config: ModelConfig, batch: int, groups: int, slots: int
) -> tuple[SuffixCache, ...]:
    """The suffix cache of every layer, with `slots` free slots."""
    shape = (batch, config.num_kv_heads, groups, slots, config.head_dim)
    return tuple(
        SuffixCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        for _ in range(config.num_layers)
    )


def grouped_attention(
    q_BxSxHxDh: jax.Array,
    k_BxSxKxDh: jax.Array,
    v_BxSxKxDh: jax.Array,
    prefix: PrefixCache,
    suffix: SuffixCache,
    attention_mask_BxGxQxT: jax.Array,
    slot: jax.Array | int,
) -> tuple[jax.Array, SuffixCache]:
    """Attention of S = G * Q new tokens per row to the row's prefix and to their own suffix.

    Args:
      q_BxSxHxDh: queries of the new tokens.
      k_BxSxKxDh: their keys.
      v_BxSxKxDh: their values.
      prefix: one layer's.
      suffix: one layer's.
      attention_mask_BxGxQxT: bool, the slots that each new token attends to once the new tokens are
        written, its own among them.
      slot: where the first of the Q new tokens is written.

    Returns:
      [B, S, H, Dh] in the type of v, and the suffix cache with the new tokens.
    """
    batch, groups, queries, slots = attention_mask_BxGxQxT.shape
    kv_heads, width = k_BxSxKxDh.shape[2:]
    share = q_BxSxHxDh.shape[2] // kv_heads

    def write(old, new_BxSxKxDh):
        new = new_BxSxKxDh.reshape(batch, groups, queries, kv_heads, width).transpose(0, 3, 1, 2, 4)
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=3)

    suffix = SuffixCache(write(suffix.k, k_BxSxKxDh), write(suffix.v, v_BxSxKxDh))
    q = q_BxSxHxDh.reshape(batch, groups, queries, kv_heads, share, width)
    q = q.transpose(0, 3, 1, 2, 4, 5) * width**-0.5
    # The prefix takes one plain product for all suffixes, the suffixes one each.
    to_prefix = (batch, kv_heads, groups * queries * share)
    to_suffix = (batch, kv_heads, groups, queries * share)
    before = jnp.einsum(
        "bknd,bkcd->bknc",
        q.reshape(*to_prefix, width),
        prefix.k,
        preferred_element_type=jnp.float32,
    )
    before = jnp.where(prefix.valid[:, None, None], before, LOW)
    before = before.reshape(batch, kv_heads, groups, queries, share, -1)
    own = jnp.einsum(
        "bkgnd,bkgtd->bkgnt",
        q.reshape(*to_suffix, width),
        suffix.k,
        preferred_element_type=jnp.float32,
    )
    own = own.reshape(batch, kv_heads, groups, queries, share, slots)
    own = jnp.where(attention_mask_BxGxQxT[:, None, :, :, None], own, LOW)
    weight = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1)
    weight = weight.astype(v_BxSxKxDh.dtype)
    length = prefix.k.shape[2]
    over_prefix = weight[..., :length].reshape(*to_prefix, length)
    over_suffix = weight[..., length:].reshape(*to_suffix, slots)
    out = jnp.einsum("bknc,bkcd->bknd", over_prefix, prefix.v).reshape(q.shape)
    out += jnp.einsum("bkgnt,bkgtd->bkgnd", over_suffix, suffix.v).reshape(q.shape)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(q_BxSxHxDh.shape), suffix


def append_tokens(
    config: ModelConfig,
    weights: Weights,
    prefix: tuple[PrefixCache, ...],
    suffix: tuple[SuffixCache, ...],
    slot: jax.Array | int,
    token_BxGxQ: jax.Array,
    position_BxGxQ: jax.Array,
    attention_mask_BxGxQxT: jax.Array,
) -> tuple[jax.Array, tuple[SuffixCache, ...]]:
    """Runs Q new text tokens of every suffix through the decoder.

    Returns:
      the last layer's output [B, G, Q, D], and the suffix caches with the new tokens.
    """
    batch = token_BxGxQ.shape[0]
    x = weights.embed_tokens[token_BxGxQ.reshape(batch, -1)]
    cos, sin = rope_cos_sin(config, position_BxGxQ.reshape(batch, -1))
    layer = DecoderLayer(config, parent=None)
    written = []
    for params, before, own in zip(weights.layers, prefix, suffix, strict=True):

        def attend(q, k, v, before=before, own=own):
            out, new = grouped_attention(q, k, v, before, own, attention_mask_BxGxQxT, slot)
            written.append(new)
            return out

        x, _ = layer.apply({"params": params}, x, cos, sin, attend)
    return x.reshape(*token_BxGxQ.shape, -1), tuple(written)
