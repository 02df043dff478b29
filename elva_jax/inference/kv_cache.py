"""Text behind a prefilled front: several continuations of every row at once, each seeing the row's front and its own past.

Arrays are [B, G, Q]: B prefilled rows, G continuations of each (such as the questions about one video), Q tokens. The front's keys and
values are shared by the G continuations without being copied.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elva_jax.inference.params import Weights, logits
from elva_jax.inference.prefill import KeysValues
from elva_jax.models.config import ElvaConfig
from elva_jax.models.qwen2 import DecoderLayer, angles

LOW = float(jnp.finfo(jnp.float32).min)


class Tail(NamedTuple):
    """Keys and values of the continuations in one decoder layer."""

    k: jax.Array  # [B, K, G, T, Dh]
    v: jax.Array  # [B, K, G, T, Dh]


def new_tail(config: ElvaConfig, batch: int, groups: int, slots: int) -> tuple[Tail, ...]:
    """An empty tail with room for `slots` tokens a continuation."""
    c = config.decoder
    shape = (batch, c.num_kv_heads, groups, slots, c.head_dim)
    return tuple(
        Tail(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        for _ in range(c.num_layers)
    )


def grouped_attention(
    q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, front: KeysValues, tail: Tail, sees_BxGxQxT, slot
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attention of new tokens, S = G * Q of them a row, over their row's front and the slots of their own continuation.

    Args:
      q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh: of the new tokens.
      front: one layer's keys and values.
      tail: one layer's keys and values.
      sees_BxGxQxT: bool, which slots each new token sees once the new tokens are written; its own among them.
      slot: where the first of the Q new tokens is written.

    Returns:
      [B, S, H, Dh] in the type of v, and the tail's new keys and values.
    """
    batch, groups, queries, slots = sees_BxGxQxT.shape
    kv_heads, width = k_BxSxKxDh.shape[2:]
    share = q_BxSxHxDh.shape[2] // kv_heads

    def write(old, new_BxSxKxDh):
        new = new_BxSxKxDh.reshape(batch, groups, queries, kv_heads, width).transpose(0, 3, 1, 2, 4)
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=3)

    k_tail, v_tail = write(tail.k, k_BxSxKxDh), write(tail.v, v_BxSxKxDh)
    q = (
        q_BxSxHxDh.reshape(batch, groups, queries, kv_heads, share, width).transpose(
            0, 3, 1, 2, 4, 5
        )
        * width**-0.5
    )
    # The front is one plain product for all continuations; the tail one for each.
    over_front, over_tail = (
        (batch, kv_heads, groups * queries * share),
        (batch, kv_heads, groups, queries * share),
    )
    before = jnp.einsum(
        "bknd,bkcd->bknc",
        q.reshape(*over_front, width),
        front.k,
        preferred_element_type=jnp.float32,
    )
    before = jnp.where(front.valid[:, None, None], before, LOW).reshape(
        batch, kv_heads, groups, queries, share, -1
    )
    own = jnp.einsum(
        "bkgnd,bkgtd->bkgnt",
        q.reshape(*over_tail, width),
        k_tail,
        preferred_element_type=jnp.float32,
    )
    own = own.reshape(batch, kv_heads, groups, queries, share, slots)
    own = jnp.where(sees_BxGxQxT[:, None, :, :, None], own, LOW)
    weight = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1).astype(
        v_BxSxKxDh.dtype
    )
    length = front.k.shape[2]
    out = jnp.einsum(
        "bknc,bkcd->bknd", weight[..., :length].reshape(*over_front, length), front.v
    ).reshape(q.shape)
    out += jnp.einsum(
        "bkgnt,bkgtd->bkgnd", weight[..., length:].reshape(*over_tail, slots), v_tail
    ).reshape(q.shape)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(q_BxSxHxDh.shape), (k_tail, v_tail)


def extend(
    config: ElvaConfig,
    weights: Weights,
    front: tuple[KeysValues, ...],
    tail: tuple[Tail, ...],
    slot,
    token_BxGxQ,
    position_BxGxQ,
    sees_BxGxQxT,
) -> tuple[jax.Array, tuple[Tail, ...]]:
    """Runs Q new text tokens of every continuation through the decoder.

    Returns:
      the last layer's output [B, G, Q, D], and the tail with the new tokens at `slot`.
    """
    x = weights.embed_tokens[token_BxGxQ.reshape(token_BxGxQ.shape[0], -1)]
    cos, sin = angles(config.decoder, position_BxGxQ.reshape(position_BxGxQ.shape[0], -1))
    layer = DecoderLayer(config.decoder, jnp.dtype(config.dtype), parent=None)
    grown = []
    for params, seen, own in zip(weights.layers, front, tail, strict=True):

        def attend(q, k, v, seen=seen, own=own):
            out, new = grouped_attention(q, k, v, seen, own, sees_BxGxQxT, slot)
            grown.append(Tail(*new))
            return out

        x, _ = layer.apply({"params": params}, x, cos, sin, attend)
    return x.reshape(*token_BxGxQ.shape, -1), tuple(grown)


@partial(jax.jit, static_argnums=0)
def branch_scores(
    config: ElvaConfig,
    weights: Weights,
    front,
    token_BxGxQ,
    position_BxGxQ,
    branch_BxGxQ,
    source_BxGxM,
    target_BxGxM,
):
    """Log-probabilities of the tokens of several branches behind a common trunk.

    Args:
      token_BxGxQ: a trunk (the question), then the branches (the options) one behind the other, then padding.
      position_BxGxQ: positions; every branch goes on from the trunk's end.
      branch_BxGxQ: 0 for the trunk, 1, 2 … for branches, -1 for padding. A token sees the trunk and its own branch.
      source_BxGxM: the place in Q whose prediction is asked for.
      target_BxGxM: the token whose probability is asked for there.

    Returns:
      float32 [B, G, M].
    """
    batch, groups, queries = token_BxGxQ.shape
    seen = branch_BxGxQ[:, :, None, :]
    sees = (
        ((seen == 0) | (seen == branch_BxGxQ[..., None]))
        & (seen >= 0)
        & jnp.tril(jnp.ones((1, 1, queries, queries), bool))
    )
    tail = new_tail(config, batch, groups, queries)
    x, _ = extend(config, weights, front, tail, 0, token_BxGxQ, position_BxGxQ, sees)
    picked = jnp.take_along_axis(x, source_BxGxM[..., None], axis=2)
    scores = logits(config, weights, picked)
    chosen = jnp.take_along_axis(scores, target_BxGxM[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scores, axis=-1)
