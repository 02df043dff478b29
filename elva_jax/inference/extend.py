"""Text behind a prefilled front: several continuations of every row at once, each seeing the row's front and its own past.

Arrays are [B, G, Q]: B prefilled rows, G continuations of each (such as the questions about one video), Q tokens. The front's keys and
values are shared by the G continuations without being copied.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elva_jax.inference.prefill import KeysValues, Prefix
from elva_jax.models.config import ElvaConfig
from elva_jax.models.elva import Elva
from elva_jax.models.qwen2 import UNROLL_UP_TO, DecoderLayer


class Tail(NamedTuple):
    """Keys and values of the continuations, all layers together."""

    k: jax.Array  # [L, B, G, T, K, Dh]
    v: jax.Array  # [L, B, G, T, K, Dh]


def new_tail(config: ElvaConfig, batch: int, groups: int, slots: int) -> Tail:
    """An empty tail with room for `slots` tokens a continuation."""
    c = config.decoder
    zeros = jnp.zeros((c.num_layers, batch, groups, slots, c.num_kv_heads, c.head_dim), jnp.dtype(config.dtype))
    return Tail(zeros, zeros)


def grouped_attention(
    q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, front: KeysValues, tail: Tail, sees_BxGxQxT, slot
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attention of new tokens, S = G * Q of them a row, over their row's front and the slots of their own continuation.

    Args:
      q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh: of the new tokens.
      front: one layer's keys and values, [B, C, K, Dh].
      tail: one layer's keys and values, [B, G, T, K, Dh].
      sees_BxGxQxT: bool, which slots each new token sees once the new tokens are written; its own among them.
      slot: where the first of the Q new tokens is written.

    Returns:
      [B, S, H, Dh] in the type of v, and the tail's new keys and values.
    """
    batch, groups, queries, _ = sees_BxGxQxT.shape
    kv_heads, width = k_BxSxKxDh.shape[2:]
    low = jnp.finfo(jnp.float32).min

    def write(old, new):
        new = new.reshape(batch, groups, queries, kv_heads, width)
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)

    k_tail, v_tail = write(tail.k, k_BxSxKxDh), write(tail.v, v_BxSxKxDh)
    q = q_BxSxHxDh.reshape(batch, groups, queries, kv_heads, -1, width)
    before = jnp.einsum("bgqkrd,bckd->bkrgqc", q, front.k, preferred_element_type=jnp.float32) * width**-0.5
    own = jnp.einsum("bgqkrd,bgtkd->bkrgqt", q, k_tail, preferred_element_type=jnp.float32) * width**-0.5
    before = jnp.where(front.valid[:, None, None, None, None], before, low)
    own = jnp.where(sees_BxGxQxT[:, None, None], own, low)
    weight = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1).astype(v_BxSxKxDh.dtype)
    slots = front.k.shape[1]
    out = jnp.einsum("bkrgqc,bckd->bgqkrd", weight[..., :slots], front.v)
    out += jnp.einsum("bkrgqt,bgtkd->bgqkrd", weight[..., slots:], v_tail)
    return out.reshape(q_BxSxHxDh.shape), (k_tail, v_tail)


def extend(module: Elva, prefix: Prefix, tail: Tail, slot, token_BxGxQ, position_BxGxQ, sees_BxGxQxT) -> tuple[jax.Array, Tail]:
    """Runs Q new text tokens of every continuation through the decoder; for `Elva.apply(..., method=extend)`.

    Returns:
      hidden states behind the final norm [B, G, Q, D], and the tail with the new tokens at `slot`.
    """
    decoder, config = module.decoder, module.config
    batch, groups, queries = token_BxGxQ.shape
    x = decoder.embed(token_BxGxQ.reshape(batch, -1))
    cos, sin = decoder.angles(position_BxGxQ.reshape(batch, -1))
    layer = DecoderLayer(config.decoder, jnp.dtype(config.dtype), parent=None)
    start, grown = 0, []
    for front in prefix.segments:
        stop = start + front.k.shape[0]

        def body(x, inputs, valid=front.valid):
            params, k_front, v_front, k_tail, v_tail = inputs
            written = []

            def attend(q, k, v):
                out, new = grouped_attention(q, k, v, KeysValues(k_front, v_front, valid), Tail(k_tail, v_tail), sees_BxGxQxT, slot)
                written.append(new)
                return out

            x, _ = layer.apply({"params": params}, x, cos, sin, attend)
            return x, written[0]

        params = jax.tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], decoder.stack)
        stack = (params, front.k, front.v, tail.k[start:stop], tail.v[start:stop])
        x, new = jax.lax.scan(body, x, stack, unroll=max(stop - start, 1) if stop - start <= UNROLL_UP_TO else 1)
        grown.append(new)
        start = stop
    tail = Tail(*(jnp.concatenate(parts) for parts in zip(*grown, strict=True)))
    return module.finish(x).reshape(batch, groups, queries, -1), tail


@partial(jax.jit, static_argnums=0)
def branch_scores(config: ElvaConfig, params: Any, prefix: Prefix, token_BxGxQ, position_BxGxQ, branch_BxGxQ, source_BxGxM, target_BxGxM):
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
    sees = ((seen == 0) | (seen == branch_BxGxQ[..., None])) & (seen >= 0) & jnp.tril(jnp.ones((1, 1, queries, queries), bool))
    tail = new_tail(config, batch, groups, queries)
    model = Elva(config)
    hidden, _ = model.apply({"params": params}, prefix, tail, 0, token_BxGxQ, position_BxGxQ, sees, method=extend)
    picked = jnp.take_along_axis(hidden, source_BxGxM[..., None], axis=2)
    logits = model.apply({"params": params}, picked, method="head")
    chosen = jnp.take_along_axis(logits, target_BxGxM[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


@partial(jax.jit, static_argnums=(0, 5, 6))
def greedy(
    config: ElvaConfig, params: Any, prefix: Prefix, token_BxGxQ, length_BxG, room: int, vocabulary: int, end_ids_E, limit
) -> tuple[jax.Array, jax.Array]:
    """The likeliest token after each continuation, again and again, in one program.

    Args:
      token_BxGxQ: the continuations (questions), padded on the right.
      length_BxG: their lengths; 0 for a place that is not used.
      room: static number of tokens that fit behind them.
      vocabulary: only ids below it are chosen.
      end_ids_E: int32, the tokens that end an answer.
      limit: at most so many new tokens, up to `room`.

    Returns:
      int32 [B, G, room] tokens, -1 from the ending token on, and bool [B, G] whether an ending token came.
    """
    batch, groups, queries = token_BxGxQ.shape
    model, variables = Elva(config), {"params": params}
    slots, in_order = jnp.arange(queries + room)[None, None], jnp.arange(queries)[None, None]
    asked_BxGxT = slots < length_BxG[..., None]

    def choose(hidden_BxGxD):
        logits = model.apply(variables, hidden_BxGxD, method="head")
        return jnp.argmax(logits[..., :vocabulary], axis=-1).astype(jnp.int32)

    first_position = prefix.length[:, None]
    sees = asked_BxGxT[:, :, None] & (slots[:, :, None] <= in_order[..., None])
    position = jnp.broadcast_to(first_position[..., None] + in_order, token_BxGxQ.shape)
    tail = new_tail(config, batch, groups, queries + room)
    hidden, tail = model.apply(variables, prefix, tail, 0, token_BxGxQ, position, sees, method=extend)
    last = jnp.maximum(length_BxG - 1, 0)[..., None, None]
    token = choose(jnp.take_along_axis(hidden, last, axis=2)[:, :, 0])
    finished = jnp.isin(token, end_ids_E)
    out = jnp.full((batch, groups, room), -1, jnp.int32)

    def going(state):
        step, _, done, *_ = state
        return (step < limit) & ~jnp.all(done)

    def advance(state):
        step, token, done, finished, out, tail = state
        out = out.at[:, :, step].set(jnp.where(done, -1, token))
        sees = (asked_BxGxT | ((slots >= queries) & (slots <= queries + step)))[:, :, None]
        position = (first_position + length_BxG + step)[..., None]
        hidden, tail = model.apply(variables, prefix, tail, queries + step, token[..., None], position, sees, method=extend)
        token = choose(hidden[:, :, 0])
        ended = jnp.isin(token, end_ids_E) & (step + 1 < limit)
        return step + 1, token, done | ended, finished | (ended & ~done), out, tail

    done = finished | (length_BxG == 0)
    state = (jnp.int32(0), token, done, finished, out, tail)
    _, _, _, finished, out, _ = jax.lax.while_loop(going, advance, state)
    return out, finished
