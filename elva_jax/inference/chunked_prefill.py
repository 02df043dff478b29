"""Prefill in chunks: memory beyond the caches does not grow with the prompt.

    host     hidden states [B, S, D] of the tokens, between two blocks of layers
    device   weights, caches, and one chunk:  x [B, Q, D] ─ all layers of the block ─ x [B, Q, D]

A chunk attends to the caches of the chunks before it and to itself. The patch embedding takes whole
frames at a time, and so do the layers where `model.frame_attention` is bidirectional. Merging
between blocks compares tokens chunk by chunk. The rest of it is on the host: the choice of the
pairs, from numbers alone ([B, S], without features), and the means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.batching import GRID, ChooseLength, Rows, grid_length
from elva_jax.inference.kv_cache import PrefixCache, split_heads
from elva_jax.inference.params import Weights
from elva_jax.inference.prefill import LayerInputs, Prefix, embed_program, layer_inputs
from elva_jax.models.elva import LayerBlock, layer_blocks, merging_of, with_merging
from elva_jax.models.qwen2 import DecoderLayer, attention_split
from elva_jax.ops import merging as merging_ops
from elva_jax.ops.attention.cached import Cached, cached_attention
from elva_jax.ops.merging import NO_MERGING, Merging
from elva_jax.ops.similarity import similarity_of
from elva_jax.parallel.host_arrays import to_host
from elva_jax.parallel.mesh import on_host
from elva_jax.video.layout import Kind, TokenLayout

CHUNK = 4096  # tokens of a row
LONG = 16_384  # tokens of a row above which prefill is in chunks by default

Put = Callable[[Any], Any]  # arrays [B, ...] onto the devices


def chunk_for(length: int, chosen: int | None) -> int | None:
    """Tokens per chunk for rows of `length` tokens; None: in one piece.

    `chosen` is the user's: tokens per chunk, 0 for never in chunks, None for the default.
    """
    if chosen is None:
        return CHUNK if length > LONG else None
    return chosen if 0 < chosen < length else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tokens:
    """The tokens of a batch between two blocks, on the host."""

    x: np.ndarray  # [B, C, D]
    layout: TokenLayout  # [B, C]
    size: np.ndarray  # float32 [B, C]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, without padding."""
        return int((self.layout.kind != Kind.PAD).sum(axis=1).max())


def prefill_in_chunks(
    config: ModelConfig,
    weights: Weights,
    rows: Rows,
    merging: Merging,
    *,
    chunk: int,
    put: Put,
    lengths: ChooseLength = GRID,
) -> Prefix:
    """`prefill.prefill` with memory for `chunk` tokens per row at a time.

    Args:
      config: the model.
      weights: its parameters.
      rows: the batch, on the host.
      merging: the merging layers that act.
      chunk: tokens per chunk. A frame that has more is taken whole.
      put: puts arrays of the batch onto the devices.
      lengths: chooses the length after each merging layer.
    """
    config, merges = with_merging(config, NO_MERGING), with_merging(config, merging)
    blocks = layer_blocks(merges, merging=True)
    tokens, fusion = _embed(config, weights, rows, chunk, put)
    stretch = put(rows.stretch)
    caches: list[PrefixCache] = []
    counts = []
    for block in blocks:
        if block.merge is not None:
            tokens = _merge(merges, tokens, block.merge, lengths, chunk=chunk, put=put)
        counts.append((tokens.layout.kind != Kind.PAD).sum(axis=1))
        caches += _run_block(config, weights, tokens, block, stretch, chunk=chunk, put=put)
    return Prefix(
        config=config,
        layers=tuple(caches),
        blocks=blocks,
        tokens=np.asarray(counts, np.int32),
        length=np.asarray(rows.length, np.int32),
        stretch=rows.stretch,
        fusion=fusion,
    )


def _run_block(
    config: ModelConfig,
    weights: Weights,
    tokens: _Tokens,
    block: LayerBlock,
    stretch: Int[Array, " B"],
    *,
    chunk: int,
    put: Put,
) -> list[PrefixCache]:
    """The block's caches; its output takes the place of `tokens.x`."""
    batch, length = tokens.layout.kind.shape
    size, starts = _chunks(config, tokens, chunk)
    indices, last = range(block.start, block.stop), config.num_layers - 1
    caches = [_empty(config, batch, length) for _ in indices]
    again = tokens.x[:, :0]  # the input of tokens that the next chunk takes once more
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        part = slice(start, start + size)
        x = tokens.x[:, part]
        x[:, : again.shape[1]] = again
        again = x[:, following - start :].copy() if following is not None else x[:, :0]
        layout = put(jax.tree.map(lambda field, part=part: field[:, part], tokens.layout))
        inputs, x = layer_inputs(config, layout, stretch), put(x)
        for place, index in enumerate(indices):
            run = run_chunk if index < last else run_last_chunk
            x, caches[place] = run(config, weights.layers[index], x, inputs, caches[place], start)
        # Waits, so that no more than one chunk is on the device.
        jax.block_until_ready(caches)
        if x is not None:
            tokens.x[:, part] = to_host(x)
    valid = put(np.asarray(tokens.layout.segment) > 0)
    return [PrefixCache(cache.k, cache.v, valid) for cache in caches]


def _chunks(config: ModelConfig, tokens: _Tokens, chunk: int) -> tuple[int, list[int]]:
    """The chunks' length, and where each of them starts, in order.

    The last one begins earlier where it would pass the end: the same values again. Where frames are
    attended to in both directions, a frame that a chunk cuts is computed again, whole, in the next.
    """
    frames, length = tokens.layout.frame, tokens.layout.length
    whole = config.frame_attention == "bidirectional"
    if whole:
        longest = max(int(np.bincount(row[row >= 0], minlength=1).max()) for row in frames)
        chunk = chunk if longest <= chunk else grid_length(longest)
    size, starts, done = min(chunk, length), [], 0
    while done < tokens.longest:
        starts.append(min(done, length - size))
        done = starts[-1] + size
        if whole and done < tokens.longest:
            # To the beginning of the frame that holds each row's next token.
            cut = frames[:, done, None]
            begins = np.where(cut[:, 0] < 0, done, np.argmax(frames == cut, axis=1))
            done = int(begins.min())
    return size, starts


@partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(config, batch, length):
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return Cached(split_heads(zeros), split_heads(jnp.copy(zeros)))


def chunk_layer(
    config: ModelConfig,
    params: Any,
    x: Float[Array, "B Q D"],
    inputs: LayerInputs,
    cached: Cached,
    start: Int[Array, ""] | int,
) -> tuple[Float[Array, "B Q D"], Cached]:
    """One decoder layer on a chunk whose first token is `start`."""
    written: list[Cached] = []

    def write(cache: Array, new: Array) -> Array:
        new = split_heads(new.swapaxes(1, 2).astype(cache.dtype))
        return split_heads(jax.lax.dynamic_update_slice_in_dim(cache, new, start, axis=2))

    def attend(q: Array, k: Array, v: Array) -> Array:
        written.append(Cached(write(cached.k, k), write(cached.v, v)))
        return cached_attention(
            q,
            k,
            v,
            written[0],
            jnp.asarray(start),
            reach=inputs.reach,
            implementation=config.attention,
            split=attention_split(),
        )

    layer = DecoderLayer(config, parent=None)
    applied: Any = layer.apply({"params": params}, x, inputs.cos, inputs.sin, attend)
    return applied[0], written[0]


# `x` and `cached` are used up.
run_chunk = jax.jit(chunk_layer, static_argnums=0, donate_argnums=(2, 4))


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def run_last_chunk(
    config: ModelConfig,
    params: Any,
    x: Float[Array, "B Q D"],
    inputs: LayerInputs,
    cached: Cached,
    start: Int[Array, ""] | int,
) -> tuple[None, Cached]:
    """The cache of the last layer alone, whose hidden states prefill does not need."""
    return None, chunk_layer(config, params, x, inputs, cached, start)[1]


def _embed(
    config: ModelConfig, weights: Weights, rows: Rows, chunk: int, put: Put
) -> tuple[_Tokens, np.ndarray | None]:
    """The decoder's input, some whole frames or clips of each row at a time.

    Also the weights of a MERV's encoders [B, clips, E], or None.
    """
    batch, length = rows.layout.kind.shape
    cuts = [
        _spans(
            TokenLayout(*(field[b] for field in rows.layout)),
            int(count),
            chunk,
            config.frame_patches,
        )
        for b, count in enumerate(rows.length)
    ]
    longest = max(stop - start for row in cuts for start, stop in row)
    capacity = chunk if longest <= chunk else grid_length(longest)
    count = -(-capacity // config.frame_patches) * config.frame_patches
    x = np.zeros((batch, length, config.hidden_size), jnp.dtype(config.dtype))
    rest = weights._replace(layers=())
    weighted: np.ndarray | None = None
    clips = [0] * batch  # whose weights are known, of each row
    for step in range(max(map(len, cuts))):
        spans = [row[step] if step < len(row) else (0, 0) for row in cuts]
        pieces = [_piece(rows, b, span, capacity, count) for b, span in enumerate(spans)]
        patches = np.stack([values for values, _ in pieces])
        layout = TokenLayout.stack([layout for _, layout in pieces])
        out, found = to_host(embed_program(config, rest, put(patches), put(layout)))
        if found is not None and weighted is None:
            most = rows.patches.shape[1] // config.frame_patches
            weighted = np.zeros((batch, most, found.shape[2]), np.float32)
        for b, (start, stop) in enumerate(spans):
            x[b, start:stop] = out[b, : stop - start]
            if weighted is not None:
                seen = np.sum(rows.layout.kind[b, start:stop] == Kind.PATCH) // config.frame_patches
                weighted[b, clips[b] : clips[b] + seen] = found[b, :seen]
                clips[b] += int(seen)
    size = np.ones((batch, length), np.float32)
    return _Tokens(x=x, layout=rows.layout, size=size), weighted


def _spans(
    layout: TokenLayout, count: int, chunk: int, frame_patches: int
) -> list[tuple[int, int]]:
    """Cuts the `count` tokens of a row into spans of up to `chunk`, or of one frame.

    Patches that go together, such as those of a clip in MERV, are not parted either.
    """
    frame, patches = layout.frame[:count], np.cumsum(layout.kind[:count] == Kind.PATCH)
    whole = patches[:-1] % frame_patches == 0
    ends = np.flatnonzero(((frame[1:] < 0) | (frame[1:] != frame[:-1])) & whole) + 1
    ends = np.append(ends, count)  # where a span may end
    spans, start = [], 0
    while start < count:
        within = int(np.searchsorted(ends, start + chunk, side="right")) - 1
        stop = int(ends[within]) if within >= 0 else 0
        if stop <= start:
            stop = int(ends[within + 1])
        spans.append((start, stop))
        start = stop
    return spans


def _piece(
    rows: Rows, row: int, span: tuple[int, int], capacity: int, count: int
) -> tuple[np.ndarray, TokenLayout]:
    """Patches [count, P*P*3] and layout [capacity] of a span, counted from its own beginning."""
    start, stop = span
    fields = {}
    first_patch = last_patch = 0
    for name, padding in TokenLayout.padding(capacity)._asdict().items():
        values = getattr(rows.layout, name)[row, start:stop]
        if name in ("patch_index", "frame", "row"):
            used = values[values >= 0]
            if name == "patch_index" and len(used):
                first_patch, last_patch = int(used.min()), int(used.max()) + 1
            values = np.where(values >= 0, values - used.min(initial=2**31 - 1), values)
        padding[: stop - start] = values
        fields[name] = padding
    patches = np.zeros((count, rows.patches.shape[-1]), np.uint8)
    patches[: last_patch - first_patch] = rows.patches[row, first_patch:last_patch]
    return patches, TokenLayout(**fields)


def _merge(
    config: ModelConfig, tokens: _Tokens, index: int, lengths: ChooseLength, *, chunk: int, put: Put
) -> _Tokens:
    """The tokens after merging layer `index`, in the length that the survivors need."""
    batch, length = tokens.layout.kind.shape
    size = min(chunk, length)
    with on_host():
        other = np.minimum(np.asarray(_successor(config, tokens.layout)), length - 1)
    similarity = np.zeros((batch, length), np.float32)
    for begin in range(0, tokens.longest, size):
        start = min(begin, length - size)
        part = slice(start, start + size)
        next_x = np.take_along_axis(tokens.x, other[:, part, None], axis=1)
        similarity[:, part] = to_host(_similarity(put(tokens.x[:, part]), put(next_x)))
    with on_host():
        chosen = jax.tree.map(np.asarray, _choose(config, tokens.layout, similarity, index))
    survivors = chosen.stats.survivors
    length = min(lengths(f"merge {index}", int(survivors.max())), length)
    x = np.zeros((batch, length, tokens.x.shape[2]), tokens.x.dtype)
    sizes = np.zeros((batch, length), np.float32)
    for b in range(batch):
        _means(tokens.x[b], tokens.size[b], chosen.survivor[b], (x[b], sizes[b]), chunk)
    cut = jax.tree.map(lambda field: field[:, :length], chosen.layout)
    return _Tokens(x=x, layout=cut, size=sizes)


@partial(jax.jit, static_argnums=0)
def _successor(config, layout):
    merge_lines = merging_of(config).merge_lines
    return jax.vmap(partial(merging_ops.successor, merge_lines=merge_lines))(layout)


@jax.jit
def _similarity(x, other):
    return similarity_of(x, other)


@partial(jax.jit, static_argnums=(0, 3))
def _choose(config, layout, similarity, index):
    merging = merging_of(config)
    choose = partial(
        merging_ops.choose,
        rule=merging.layers[index],
        merge_lines=merging.merge_lines,
        survivor=merging.survivor,
    )
    return jax.vmap(choose)(layout, similarity)


def _means(
    x: Float[np.ndarray, "S D"],
    size: Float[np.ndarray, " S"],
    survivor: Int[np.ndarray, " S"],
    out: tuple[Float[np.ndarray, "C D"], Float[np.ndarray, " C"]],
    chunk: int,
) -> None:
    """Writes `ops.tube_runs.weighted_means` of one row into `out`, some survivors at a time."""
    used = np.flatnonzero(survivor >= 0)
    order = used[np.argsort(survivor[used], kind="stable")]
    place = survivor[order]
    members = np.bincount(place)
    total = np.bincount(place, weights=size[order]).astype(np.float32)
    # A token alone has weight exactly 1, so that its features come out bit for bit.
    weight = np.where(members[place] == 1, np.float32(1), size[order] / total[place])
    out[1][: len(total)] = total
    first = np.concatenate([[0], np.cumsum(members)])
    for begin in range(0, len(members), chunk):
        end = min(begin + chunk, len(members))
        part = slice(first[begin], first[end])
        weighted = x[order[part]].astype(np.float32) * weight[part, None]
        out[0][begin:end] = np.add.reduceat(weighted, first[begin:end] - first[begin], axis=0)
