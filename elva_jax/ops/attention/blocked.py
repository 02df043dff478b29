r"""Attention block by block of queries, on any device and with a gradient.

A block of queries meets the keys up to its own last one, so about half of the square of scores is
computed, and no S x S array exists; only the tile on the diagonal is masked for causality:

                 keys
              1  2  3  4
    queries 1 \  .  .  .     # computed    \ computed and masked    . skipped
            2 #  \  .  .
            3 #  #  \  .
            4 #  #  #  \

Without causality, in `full_blocked_attention`, every block meets all keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from elva_jax.utils.arrays import AnyArray

LONG = 1024  # tokens above which blocks are larger, and recomputed in the backward pass
SMALL_BLOCK, LARGE_BLOCK = 64, 256  # queries per block of packed sequences, short and long
SINGLE_BLOCK = 128  # queries per block of a single example that is not long
LOWEST = float(
    jnp.finfo(jnp.float32).min
)  # score of a masked key; -inf would make NaN of inf - inf


def blocked_attention(
    q: Float[AnyArray, "B S H Dh"],
    k: Float[AnyArray, "B S K Dh"],
    v: Float[AnyArray, "B S K Dh"],
    segment: Int[AnyArray, "B S"],
    turn: Int[AnyArray, "B S"] | None,
    *,
    single: bool,
    reach: Int[AnyArray, "B S"] | None = None,
) -> Float[Array, "B S H Dh"]:
    """`packed_attention` without a mesh that splits the sequence.

    With `reach`, the last key that each query may attend to, it is not causal; `single` is then
    False.
    """
    batch, length, heads, width = q.shape
    q_BxKxGxSxDh = fold_queries(q, k.shape[2])
    k_BxKxSxDh, v_BxKxSxDh = k.swapaxes(1, 2), v.swapaxes(1, 2)
    size = SINGLE_BLOCK if single else SMALL_BLOCK if length <= LONG else LARGE_BLOCK
    starts = list(range(0, length, size))
    blocks = []
    # An unrolled loop, since every block has another number of keys.
    for start, q_block in zip(starts, jnp.split(q_BxKxGxSxDh, starts[1:], axis=3), strict=True):
        stop = min(start + size, length)
        keys = stop if reach is None else length  # a query may reach into the next block
        mask_BxQxT = None
        if not single:
            turns = None if turn is None else (turn[:, start:stop], turn[:, :keys])
            same_BxQxT = same_example(segment[:, start:stop], segment[:, :keys], turns)
            mask_BxQxT = same_BxQxT & (
                causal(start, stop - start, stop)
                if reach is None
                else jnp.arange(length)[None, None] <= reach[:, start:stop, None]
            )
        attend: Callable[..., jax.Array] = partial(attend_block, start=start)
        if length > LONG:
            attend = jax.checkpoint(attend)  # so that training keeps no scores of long sequences
        blocks.append(attend(q_block, k_BxKxSxDh[:, :, :keys], v_BxKxSxDh[:, :, :keys], mask_BxQxT))
    out = jnp.concatenate(blocks, axis=3)
    return out.reshape(batch, heads, length, width).swapaxes(1, 2)


def full_blocked_attention(
    q: Float[AnyArray, "B Q H Dh"], k: Float[AnyArray, "B S K Dh"], v: Float[AnyArray, "B S K Dh"]
) -> Float[Array, "B Q H Dh"]:
    """Attention of all queries to all keys; the scores of one block of queries exist at a time."""
    length = q.shape[1]
    count = -(-length // LARGE_BLOCK)
    size = -(-length // count)
    padded = jnp.pad(q, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
    blocks = padded.reshape(q.shape[0], count, size, *q.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint  # so that the backward pass, too, holds the scores of one block only
    def attend(block):
        return jax.nn.dot_product_attention(block, k, v)

    out = jax.lax.map(attend, blocks).swapaxes(0, 1)
    return out.reshape(padded.shape)[:, :length]


def fold_queries(q: Float[AnyArray, "B S H Dh"], kv_heads: int) -> Float[Array, "B K G S Dh"]:
    """Scaled queries, with the G heads that share a key head side by side."""
    batch, length, heads, width = q.shape
    scaled = (q * width**-0.5).swapaxes(1, 2)
    return scaled.reshape(batch, kv_heads, heads // kv_heads, length, width)


def same_example(
    query_segment: Int[AnyArray, "B Q"],
    key_segment: Int[AnyArray, "B T"],
    turns: tuple[Int[AnyArray, "B Q"], Int[AnyArray, "B T"]] | None,
) -> Bool[AnyArray, "B Q T"]:
    """Whether a query may attend to a key, causality aside; `turns` are those of both."""
    same = query_segment[:, :, None] == key_segment[:, None, :]
    if turns is None:
        return same
    query_turn, key_turn = turns[0][:, :, None], turns[1][:, None, :]
    return same & ((key_turn == 0) | (key_turn == query_turn))


def causal(start: int | Int[Array, ""], queries: int, keys: int) -> Bool[Array, "1 Q T"]:
    """Whether each key is at or before each query; the first query is token `start`."""
    return (start + jnp.arange(queries))[None, :, None] >= jnp.arange(keys)[None, None, :]


def attend_block(
    q: Float[Array, "B K G Q Dh"],
    k: Float[AnyArray, "B K T Dh"],
    v: Float[AnyArray, "B K T Dh"],
    mask: Bool[AnyArray, "B Q T"] | None,
    *,
    start: int,
) -> Float[Array, "B K G Q Dh"]:
    """One block of queries over T keys.

    Without a mask it is causal, the first query being token `start` of a single example.
    """
    batch, kv_heads, groups, queries, _ = q.shape
    keys = k.shape[2]
    # Query heads that share a key head are the rows of one plain matrix product: on CPUs that is
    # several times faster than broadcasting the keys.
    q_BxKxRxDh = q.reshape(batch, kv_heads, groups * queries, -1)
    score = jnp.einsum("bkrd,bktd->bkrt", q_BxKxRxDh, k, preferred_element_type=jnp.float32)
    score = score.reshape(batch, kv_heads, groups, queries, keys)
    if mask is None:
        # Only the block's own keys can come after its queries. Masking those alone saves a pass
        # over all scores.
        lower = jnp.tril(jnp.ones((queries, queries), bool))[None, None, None]
        own = jnp.where(lower, score[..., start:], LOWEST)
        score = jax.lax.dynamic_update_slice_in_dim(score, own, start, axis=-1)
    else:
        score = jnp.where(mask[:, None, None], score, LOWEST)
    # The softmax's division comes after the product with the values: on [Q, Dh] instead of [Q, T].
    # A token attends to itself at least, so the sum is never 0.
    weight = jnp.exp(score - jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True)))
    total_BxKxGxQx1 = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight.astype(v.dtype).reshape(batch, kv_heads, groups * queries, keys)
    out = jnp.einsum("bkrt,bktd->bkrd", weight, v, preferred_element_type=jnp.float32)
    return (out.reshape(q.shape) / total_BxKxGxQx1).astype(v.dtype)
