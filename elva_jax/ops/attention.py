"""Grouped-query attention, causal over packed sequences and their turns."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elva_jax.errors import ConfigError

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
LONG = 1024  # tokens above which blocks are larger, and recomputed in the backward pass instead of kept
SMALL_BLOCK, LARGE_BLOCK = 64, 256  # queries a block
LOW = float(jnp.finfo(jnp.float32).min)


def packed_attention(
    q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS=None, *, single: bool = False, implementation: str = "auto"
) -> jax.Array:
    """Causal self-attention in which a token sees the tokens of its own segment up to itself.

    Padding (segment 0) is a segment of its own: it sees only padding, so that its rows stay finite, and nothing else sees it.

    Args:
      q_BxSxHxDh: queries; H is a multiple of K, query head h reads key head h // (H / K).
      k_BxSxKxDh: keys.
      v_BxSxKxDh: values.
      segment_BxS: which packed example each token belongs to.
      turn_BxS: which of its example's independent turns; every turn sees turn 0 and itself. None: all are turn 0.
      single: promises that every row is one example without turns and its padding behind it, so that nothing but causality need be masked;
        padding then sees the example, and what comes out for it means nothing.
      implementation: xla works block by block on any device; cudnn is the fused kernel (GPU, half precision, head width up to 128);
        auto takes cudnn where it can run.

    Returns:
      [B, S, H, Dh] in the type of v; the softmax is float32.

    Raises:
      ConfigError: cudnn was asked for where it cannot run, or the implementation is unknown.
    """
    if chosen(q_BxSxHxDh, implementation).name == "xla":
        return _blocked_attention(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS, single)
    fused = partial(jax.nn.dot_product_attention, q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, is_causal=True, implementation="cudnn")
    if single:
        length_B = jnp.sum(segment_BxS > 0, axis=1, dtype=jnp.int32)
        return fused(query_seq_lengths=length_B, key_value_seq_lengths=length_B)
    turns = None if turn_BxS is None else (turn_BxS, turn_BxS)
    return fused(mask=_same_example(segment_BxS, segment_BxS, turns)[:, None])


class Chosen(NamedTuple):
    """The implementation that runs, and why."""

    name: str  # xla | cudnn
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def chosen(q_BxSxHxDh: jax.ShapeDtypeStruct, implementation: str = "auto") -> Chosen:
    """Which implementation `packed_attention` takes for such queries on this machine.

    Raises:
      ConfigError: cudnn was asked for where it cannot run, or the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"model.attention: {implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}")
    obstacle = _cudnn_obstacle(q_BxSxHxDh)
    if implementation == "cudnn" and obstacle:
        raise ConfigError(f"model.attention: cudnn {obstacle}; use auto or xla")
    if implementation == "xla":
        return Chosen("xla", "as model.attention says")
    return Chosen("xla", f"cudnn {obstacle}") if obstacle else Chosen("cudnn", "a GPU in half precision")


def _same_example(query_BxQ, key_BxT, turns: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """bool [B, Q, T]: whether a query may see a key, apart from causality; `turns` are those of queries and keys."""
    same = query_BxQ[:, :, None] == key_BxT[:, None, :]
    if turns is None:
        return same
    query_turn, key_turn = turns[0][:, :, None], turns[1][:, None, :]
    return same & ((key_turn == 0) | (key_turn == query_turn))


def _cudnn_obstacle(q_BxSxHxDh: jax.Array) -> str:
    """Why cuDNN's fused attention cannot run; empty where it can."""
    if jax.default_backend() != "gpu":
        return f"needs a GPU, not {jax.default_backend()}"
    if q_BxSxHxDh.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs model.dtype bfloat16, not {q_BxSxHxDh.dtype}"
    if q_BxSxHxDh.shape[-1] > 128 or q_BxSxHxDh.shape[-1] % 8:
        return f"needs model.head_dim to be a multiple of 8 up to 128, not {q_BxSxHxDh.shape[-1]}"
    return ""


def _blocked_attention(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS, single: bool) -> jax.Array:
    """Blocks of queries over the keys up to their last one: half the work of a full square, and no S x S array.

    Query heads that share a key head are folded into the rows of one plain matrix product, several times faster on CPUs than broadcasting
    keys. In long sequences each block is recomputed in the backward pass, so that training keeps no scores.
    """
    batch, length, heads, width = q_BxSxHxDh.shape
    kv_heads = k_BxSxKxDh.shape[2]
    q = (q_BxSxHxDh * width**-0.5).swapaxes(1, 2).reshape(batch, kv_heads, heads // kv_heads, length, width)
    k, v = k_BxSxKxDh.swapaxes(1, 2), v_BxSxKxDh.swapaxes(1, 2)
    size = SMALL_BLOCK if length <= LONG else LARGE_BLOCK
    starts = list(range(0, length, size))
    queries = jnp.split(q, starts[1:], axis=3)
    blocks = []
    for start, q_block in zip(starts, queries, strict=True):
        stop = min(start + size, length)
        turns = None if turn_BxS is None else (turn_BxS[:, start:stop], turn_BxS[:, :stop])
        same_BxQxT = _same_example(segment_BxS[:, start:stop], segment_BxS[:, :stop], turns)
        block = partial(_attend_block, start=start)
        if length > LONG:
            block = jax.checkpoint(block)
        blocks.append(block(q_block, k[:, :, :stop], v[:, :, :stop], same_BxQxT))
    out = jnp.concatenate(blocks, axis=3)
    return out.reshape(batch, heads, length, width).swapaxes(1, 2)


def _attend_block(q_BxKxGxQxDh, k_BxKxTxDh, v_BxKxTxDh, same_BxQxT, *, start: int) -> jax.Array:
    """One block of queries [B, K, G, Q, Dh], the first of them being token `start`, over keys 0 … T − 1."""
    batch, kv_heads, groups, queries, width = q_BxKxGxQxDh.shape
    keys = k_BxKxTxDh.shape[2]
    rows = q_BxKxGxQxDh.reshape(batch, kv_heads, groups * queries, width)
    score = jnp.einsum("bkrd,bktd->bkrt", rows, k_BxKxTxDh, preferred_element_type=jnp.float32)
    score = score.reshape(batch, kv_heads, groups, queries, keys)
    causal_1xQxT = (start + jnp.arange(queries))[None, :, None] >= jnp.arange(keys)[None, None, :]
    score = jnp.where((same_BxQxT & causal_1xQxT)[:, None, None], score, LOW)
    # Dividing behind the product instead of before it saves a pass over the scores. A token sees itself, so the sum is never 0.
    weight = jnp.exp(score - jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True)))
    total_BxKxGxQx1 = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight.astype(v_BxKxTxDh.dtype).reshape(batch, kv_heads, groups * queries, keys)
    out = jnp.einsum("bkrt,bktd->bkrd", weight, v_BxKxTxDh, preferred_element_type=jnp.float32)
    return (out.reshape(q_BxKxGxQxDh.shape) / total_BxKxGxQx1).astype(v_BxKxTxDh.dtype)
