"""Grouped-query attention, causal over packed sequences and their turns."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elva_jax.errors import ConfigError
from elva_jax.parallel.sharding import mesh_axes

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
PLAN = "plan"  # for `elva plan` alone: the memory of the fused kernel, and none of its work
LONG = 1024  # tokens above which blocks are larger, and recomputed in the backward pass instead of kept
SMALL_BLOCK, LARGE_BLOCK = 64, 256  # queries a block, of packed sequences short and long
SINGLE_BLOCK = 128  # and of a single example that is not long
TILE = 256  # queries and keys of a tile, of a single long example
WHOLE = PartitionSpec(None, None, None)  # rows, sequence and heads
LOW = float(jnp.finfo(jnp.float32).min)


def packed_attention(
    q_BxSxHxDh,
    k_BxSxKxDh,
    v_BxSxKxDh,
    segment_BxS,
    turn_BxS=None,
    *,
    single: bool = False,
    implementation: str = "auto",
    split: PartitionSpec = WHOLE,
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
        padding then sees the example, and what comes out for it means nothing. For inference: long ones have no gradient.
      implementation: xla works block by block on any device; cudnn is the fused kernel (GPU, half precision, head width up to 128);
        auto takes cudnn where it can run.
      split: how the mesh in force splits rows, sequence and heads. Where it splits the sequence, which xla alone can work with, queries
        stay on their devices and see keys and values that are gathered whole; otherwise the partitioner sees to it.

    Returns:
      [B, S, H, Dh] in the type of v; the softmax is float32.

    Raises:
      ConfigError: cudnn was asked for where it cannot run, or the implementation is unknown.
    """
    if implementation == PLAN:
        return _shapes_of_fused(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh)
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = math.prod(sizes[name] for name in mesh_axes(split[1]))
    if chosen(q_BxSxHxDh, implementation, parts).name == "xla":
        if parts > 1 and q_BxSxHxDh.shape[1] % parts == 0:
            return _split_attention(
                q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS, split
            )
        if single and q_BxSxHxDh.shape[1] > LONG:
            return _tiled_attention(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh)
        return _blocked_attention(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS, single)
    fused = partial(
        jax.nn.dot_product_attention,
        q_BxSxHxDh,
        k_BxSxKxDh,
        v_BxSxKxDh,
        is_causal=True,
        implementation="cudnn",
    )
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


def chosen(
    q_BxSxHxDh: jax.ShapeDtypeStruct, implementation: str = "auto", parts: int = 1
) -> Chosen:
    """Which implementation `packed_attention` takes for such queries on this machine, whose mesh splits a sequence into `parts`.

    Raises:
      ConfigError: cudnn was asked for where it cannot run, or the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"model.attention: {implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}"
        )
    obstacle = _cudnn_obstacle(q_BxSxHxDh) or (
        f"needs whole sequences, which mesh.context = {parts} splits" if parts > 1 else ""
    )
    if implementation == "cudnn" and obstacle:
        raise ConfigError(f"model.attention: cudnn {obstacle}; use auto or xla")
    if implementation == "xla":
        return Chosen("xla", "as model.attention says")
    return (
        Chosen("xla", f"cudnn {obstacle}")
        if obstacle
        else Chosen("cudnn", "a GPU in half precision")
    )


def chosen_for(
    num_heads: int, head_dim: int, dtype: str, implementation: str, parts: int = 1
) -> Chosen:
    """`chosen` for a model's numbers."""
    return chosen(
        jax.ShapeDtypeStruct((1, 1, num_heads, head_dim), jnp.dtype(dtype)), implementation, parts
    )


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


def _blocked_attention(
    q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS, single: bool
) -> jax.Array:
    """Blocks of queries over the keys up to their last one: half the work of a full square, and no S x S array.

    Query heads that share a key head are folded into the rows of one plain matrix product, several times faster on CPUs than broadcasting
    keys. In long sequences each block is recomputed in the backward pass, so that training keeps no scores.
    """
    batch, length, heads, width = q_BxSxHxDh.shape
    q = _fold_queries(q_BxSxHxDh, k_BxSxKxDh.shape[2])
    k, v = k_BxSxKxDh.swapaxes(1, 2), v_BxSxKxDh.swapaxes(1, 2)
    size = SINGLE_BLOCK if single else SMALL_BLOCK if length <= LONG else LARGE_BLOCK
    starts = list(range(0, length, size))
    queries = jnp.split(q, starts[1:], axis=3)
    blocks = []
    for start, q_block in zip(starts, queries, strict=True):
        stop = min(start + size, length)
        seen_BxQxT = None
        if not single:
            turns = None if turn_BxS is None else (turn_BxS[:, start:stop], turn_BxS[:, :stop])
            same_BxQxT = _same_example(segment_BxS[:, start:stop], segment_BxS[:, :stop], turns)
            seen_BxQxT = same_BxQxT & _causal(start, stop - start, stop)
        block = partial(_attend_block, start=start)
        if length > LONG:
            block = jax.checkpoint(block)
        blocks.append(block(q_block, k[:, :, :stop], v[:, :, :stop], seen_BxQxT))
    out = jnp.concatenate(blocks, axis=3)
    return out.reshape(batch, heads, length, width).swapaxes(1, 2)


def _fold_queries(q_BxSxHxDh, kv_heads: int) -> jax.Array:
    """Scaled queries [B, K, G, S, Dh], the G heads that share a key head together."""
    batch, length, heads, width = q_BxSxHxDh.shape
    return (
        (q_BxSxHxDh * width**-0.5)
        .swapaxes(1, 2)
        .reshape(batch, kv_heads, heads // kv_heads, length, width)
    )


def _causal(start, queries: int, keys: int) -> jax.Array:
    """bool [1, Q, T]: whether a key is no later than a query, the first of which is token `start`."""
    return (start + jnp.arange(queries))[None, :, None] >= jnp.arange(keys)[None, None, :]


def _split_attention(
    q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS, turn_BxS, split: PartitionSpec
) -> jax.Array:
    """Every part of the sequence on its own device, in blocks of its queries over all keys, one block's scores at a time.

    The causal half that a mask hides is computed too: without it the last part would have nearly twice the mean work, and all would wait.
    """
    length, axis = q_BxSxHxDh.shape[1], split[1]

    def gathered(x_BxLx):
        return jax.lax.all_gather(
            x_BxLx, axis, axis=1, tiled=True
        )  # its gradient is scattered as it is summed, once a layer

    def part(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, segment_BxL, turn_BxL=None):
        batch, own, heads, width = q_BxLxHxDh.shape
        size = min(own, SMALL_BLOCK if length <= LONG else LARGE_BLOCK)
        count = -(-own // size)
        k, v = (gathered(x).swapaxes(1, 2) for x in (k_BxLxKxDh, v_BxLxKxDh))
        every_segment, every_turn = (
            gathered(segment_BxL),
            None if turn_BxL is None else gathered(turn_BxL),
        )

        def blocks(x_BxLx, fill=0):
            """[count, B, size, ...]"""
            padded = jnp.pad(
                x_BxLx,
                ((0, 0), (0, count * size - own), *((0, 0),) * (x_BxLx.ndim - 2)),
                constant_values=fill,
            )
            return padded.reshape(batch, count, size, *x_BxLx.shape[2:]).swapaxes(0, 1)

        @jax.checkpoint  # so that the backward pass holds one block's scores too
        def attend(_, block):
            q_BxQxHxDh, segment_BxQ, turn_BxQ, start = block
            turns = None if turn_BxQ is None else (turn_BxQ, every_turn)
            seen_BxQxT = _same_example(segment_BxQ, every_segment, turns) & _causal(
                start, size, length
            )
            return None, _attend_block(
                _fold_queries(q_BxQxHxDh, k.shape[1]), k, v, seen_BxQxT, start=0
            )

        starts = jax.lax.axis_index(axis) * own + jnp.arange(count) * size
        turn_blocks = None if turn_BxL is None else blocks(turn_BxL)
        # Queries that only fill the last block up are of no example.
        _, out = jax.lax.scan(
            attend, None, (blocks(q_BxLxHxDh), blocks(segment_BxL, -1), turn_blocks, starts)
        )
        out_BxHxTxDh = jnp.moveaxis(out, 0, 3).reshape(batch, heads, count * size, width)
        return out_BxHxTxDh[:, :, :own].swapaxes(1, 2)

    arrays = [q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh, segment_BxS] + (
        [] if turn_BxS is None else [turn_BxS]
    )
    specs = tuple(PartitionSpec(*split[: array.ndim]) for array in arrays)
    # Left to the partitioner, rows would be gathered over the devices that hold others.
    return jax.shard_map(
        part, in_specs=specs, out_specs=specs[0], axis_names=set(mesh_axes(*split))
    )(*arrays)


def _attend_block(q_BxKxGxQxDh, k_BxKxTxDh, v_BxKxTxDh, seen_BxQxT, *, start: int) -> jax.Array:
    """One block of queries [B, K, G, Q, Dh] over keys 0 … T − 1.

    seen_BxQxT says which; None: all up to itself, the first query being token `start` of a single example.
    """
    batch, kv_heads, groups, queries, width = q_BxKxGxQxDh.shape
    keys = k_BxKxTxDh.shape[2]
    rows = q_BxKxGxQxDh.reshape(batch, kv_heads, groups * queries, width)
    score = jnp.einsum("bkrd,bktd->bkrt", rows, k_BxKxTxDh, preferred_element_type=jnp.float32)
    score = score.reshape(batch, kv_heads, groups, queries, keys)
    if seen_BxQxT is None:
        # Only the block's own keys can lie ahead of its queries; a mask over all keys would take another pass over the scores.
        own = jnp.where(
            jnp.tril(jnp.ones((queries, queries), bool))[None, None, None], score[..., start:], LOW
        )
        score = jax.lax.dynamic_update_slice_in_dim(score, own, start, axis=-1)
    else:
        score = jnp.where(seen_BxQxT[:, None, None], score, LOW)
    # Dividing behind the product instead of before it saves a pass over the scores. A token sees itself, so the sum is never 0.
    weight = jnp.exp(score - jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True)))
    total_BxKxGxQx1 = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight.astype(v_BxKxTxDh.dtype).reshape(batch, kv_heads, groups * queries, keys)
    out = jnp.einsum("bkrt,bktd->bkrd", weight, v_BxKxTxDh, preferred_element_type=jnp.float32)
    return (out.reshape(q_BxKxGxQxDh.shape) / total_BxKxGxQx1).astype(v_BxKxTxDh.dtype)


def _tiled_attention(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh) -> jax.Array:
    """Causal attention tile by tile with a running softmax: memory beyond inputs and result is that of one tile, whatever the length.

    A tile of one key head's queries stays in the processor's cache, which made it a third faster than whole rows of scores. The loop over
    a row's tiles ends at the diagonal; loops of varying length have no reverse-mode gradient.
    """
    batch, length, heads, width = q_BxSxHxDh.shape
    kv_heads, tiles = k_BxSxKxDh.shape[2], -(-length // TILE)
    groups = heads // kv_heads
    rows = groups * TILE

    def split(x_BxSxNxDh):
        """[B * K, ..., tiles * TILE, Dh]: heads in front, the length padded to whole tiles."""
        padded = jnp.pad(x_BxSxNxDh, ((0, 0), (0, tiles * TILE - length), (0, 0), (0, 0))).swapaxes(
            1, 2
        )
        return padded.reshape(batch * kv_heads, -1, tiles * TILE, width)

    def one_head(inputs):
        q_GxSxDh, k_DhxS, v_SxDh = inputs

        def one_row(row):
            q_RxDh = jax.lax.dynamic_slice_in_dim(q_GxSxDh, row * TILE, TILE, axis=1).reshape(
                rows, width
            )

            def add(tile, sums, diagonal=False):
                k_DhxT = jax.lax.dynamic_slice_in_dim(k_DhxS, tile * TILE, TILE, axis=1)
                v_TxDh = jax.lax.dynamic_slice_in_dim(v_SxDh, tile * TILE, TILE, axis=0)
                score = jnp.dot(q_RxDh, k_DhxT, preferred_element_type=jnp.float32)
                if diagonal:
                    causal = jnp.tril(jnp.ones((TILE, TILE), bool))[None]
                    score = jnp.where(causal, score.reshape(groups, TILE, TILE), LOW).reshape(
                        rows, TILE
                    )
                highest = jnp.maximum(sums.highest, jnp.max(score, axis=-1, keepdims=True))
                fade, weight = jnp.exp(sums.highest - highest), jnp.exp(score - highest)
                value = jnp.dot(
                    weight.astype(v_TxDh.dtype), v_TxDh, preferred_element_type=jnp.float32
                )
                return _Sums(
                    highest,
                    sums.weight * fade + jnp.sum(weight, axis=-1, keepdims=True),
                    sums.value * fade + value,
                )

            sums = _Sums(jnp.full((rows, 1), LOW), jnp.zeros((rows, 1)), jnp.zeros((rows, width)))
            sums = add(row, jax.lax.fori_loop(0, row, add, sums), diagonal=True)
            return (sums.value / sums.weight).astype(v_SxDh.dtype).reshape(groups, TILE, width)

        return jax.lax.map(one_row, jnp.arange(tiles))

    k, v = split(k_BxSxKxDh)[:, 0], split(v_BxSxKxDh)[:, 0]
    out = jax.lax.map(one_head, (split(q_BxSxHxDh * width**-0.5), k.swapaxes(1, 2), v))
    out = out.reshape(batch, kv_heads, tiles, groups, TILE, width).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, tiles * TILE, heads, width)[:, :length]


class _Sums(NamedTuple):
    """What a row of tiles has come to so far; R queries."""

    highest: jax.Array  # float32 [R, 1], of the scores
    weight: jax.Array  # float32 [R, 1], sum of exp(score - highest)
    value: jax.Array  # float32 [R, Dh], sum of the values so weighted


@jax.custom_vjp
def _shapes_of_fused(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh) -> jax.Array:
    """What a program with cuDNN's kernel holds in memory, where there is no cuDNN; the numbers mean nothing.

    The kernel keeps queries, keys, values, the result and one float32 sum a query and head, and writes three gradients.
    """
    return _fused_forward(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh)[0]


def _fused_forward(q, k, v):
    groups = q.shape[2] // k.shape[2]
    out = q * jnp.repeat(k, groups, axis=2) + jnp.repeat(v, groups, axis=2)
    return out, (q, k, v, out, jnp.sum(q.astype(jnp.float32), axis=-1))


def _fused_backward(kept, gradient):
    q, k, v, out, sums = kept
    query_gradient = gradient * out * sums[..., None].astype(q.dtype)

    def fold(x):
        return jnp.sum(x.reshape(*k.shape[:3], -1, k.shape[3]), axis=3, dtype=k.dtype)

    return query_gradient, fold(gradient * q) * k, fold(gradient) * v


_shapes_of_fused.defvjp(_fused_forward, _fused_backward)
