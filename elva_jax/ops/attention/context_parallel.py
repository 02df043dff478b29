"""Attention over a sequence that the mesh splits: queries stay, keys and values are gathered.

    device   own queries   keys and values, once per layer
      0      [S/4]         all-gather -> [S]
      1      [S/4]         all-gather -> [S]      the gradients of both come back by
      2      [S/4]         all-gather -> [S]      reduce-scatter, once per layer too
      3      [S/4]         all-gather -> [S]

Each device scans its queries in blocks over all keys. The half of the scores that causality masks
is computed as well: without it the last device would have nearly twice the average work, and all
others would wait for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from elva_jax.ops.attention.blocked import (
    LARGE_BLOCK,
    LONG,
    SMALL_BLOCK,
    attend_block,
    causal,
    fold_queries,
    same_example,
)
from elva_jax.parallel.sharding import mesh_axes
from elva_jax.utils.arrays import AnyArray


def context_parallel_attention(
    q: Float[AnyArray, "B S H Dh"],
    k: Float[AnyArray, "B S K Dh"],
    v: Float[AnyArray, "B S K Dh"],
    segment: Int[AnyArray, "B S"],
    turn: Int[AnyArray, "B S"] | None,
    split: PartitionSpec,
) -> Float[Array, "B S H Dh"]:
    """`packed_attention` on the current mesh, which divides S; `split` is as there."""
    length, axis = q.shape[1], split[1]

    def one_device(q, k, v, segment, turn=None):
        return _attend_own(q, k, v, segment, turn, axis=axis, length=length)

    arrays = [q, k, v, segment] + ([] if turn is None else [turn])
    specs = tuple(PartitionSpec(*split[: array.ndim]) for array in arrays)
    # The partitioner, if this were left to it, would gather rows over the devices that hold others.
    return jax.shard_map(
        one_device, in_specs=specs, out_specs=specs[0], axis_names=set(mesh_axes(*split))
    )(*arrays)


def _attend_own(
    q: Float[Array, "B L H Dh"],
    k: Float[Array, "B L K Dh"],
    v: Float[Array, "B L K Dh"],
    segment: Int[Array, "B L"],
    turn: Int[Array, "B L"] | None,
    *,
    axis: str | tuple[str, ...],
    length: int,
) -> Float[Array, "B L H Dh"]:
    """One device's L queries over all keys, one block's scores at a time."""
    batch, own, heads, width = q.shape
    size = min(own, SMALL_BLOCK if length <= LONG else LARGE_BLOCK)
    count = -(-own // size)

    def gather(x):
        return jax.lax.all_gather(x, axis, axis=1, tiled=True)

    def to_blocks(x, fill=0):
        """[B, L, ...] -> [count, B, size, ...], the last block filled up."""
        pad_width = ((0, 0), (0, count * size - own), *((0, 0),) * (x.ndim - 2))
        padded = jnp.pad(x, pad_width, constant_values=fill)
        return padded.reshape(batch, count, size, *x.shape[2:]).swapaxes(0, 1)

    all_k, all_v = (gather(x).swapaxes(1, 2) for x in (k, v))
    all_segments, all_turns = gather(segment), None if turn is None else gather(turn)

    @jax.checkpoint  # so that the backward pass, too, holds the scores of one block only
    def attend(_, block):
        q_block, segment_block, turn_block, start = block
        turns = None if all_turns is None else (turn_block, all_turns)
        mask_BxQxT = same_example(segment_block, all_segments, turns) & causal(start, size, length)
        folded = fold_queries(q_block, all_k.shape[1])
        return None, attend_block(folded, all_k, all_v, mask_BxQxT, start=0)

    starts = jax.lax.axis_index(axis) * own + jnp.arange(count) * size
    turn_blocks = None if turn is None else to_blocks(turn)
    # Queries that only fill up the last block belong to no example: segment -1.
    blocks = (to_blocks(q), to_blocks(segment, -1), turn_blocks, starts)
    _, out = jax.lax.scan(attend, None, blocks)
    out_BxHxTxDh = jnp.moveaxis(out, 0, 3).reshape(batch, heads, count * size, width)
    return out_BxHxTxDh[:, :, :own].swapaxes(1, 2)
