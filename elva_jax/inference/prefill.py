"""Prefill: prompts through the decoder, with fewer tokens after every merging layer.

    embed ─ layers 0 … k-1 ─ merge ─ layers k … m-1 ─ merge ─ layers m … L-1
            [B, S, D]                [B, C1, D]               [B, C2, D]

Between two blocks of layers the host reads how many tokens survived and continues with the smallest
length of the grid that holds them, so redundant video costs less. One program runs any layer of one
(batch, length); no result depends on which length it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8

from elva_jax.config.schema import ModelConfig
from elva_jax.inference import params as params_module
from elva_jax.inference.batching import GRID, ChooseLength, Rows
from elva_jax.inference.kv_cache import PrefixCache, split_heads
from elva_jax.inference.long_context import row_cos_sin
from elva_jax.inference.params import Weights
from elva_jax.models.elva import LayerBlock, layer_blocks, merge_batch, with_merging
from elva_jax.models.qwen2 import DecoderLayer, attention_split
from elva_jax.ops.attention import frame_attention, frame_reach, packed_attention
from elva_jax.ops.merging import NO_MERGING, Merged, Merging
from elva_jax.parallel.host_arrays import to_host
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import Kind, TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """A prefilled batch of prompt prefixes."""

    config: ModelConfig  # the model that it was made with, without merging layers
    layers: tuple[PrefixCache, ...]  # C is each layer block's own
    blocks: tuple[LayerBlock, ...]  # the decoder's layer blocks
    tokens: np.ndarray  # int32 [blocks, B], tokens that each block worked on
    length: np.ndarray  # int32 [B], the position where each row's text continues
    stretch: np.ndarray  # int32 [B], how RoPE is scaled for each row
    fusion: Any  # float32 [B, clips, E], weights of a MERV's encoders; None for other models


class Tokens(NamedTuple):
    """The tokens of a batch between two layers."""

    x: Float[Array, "B C D"]  # hidden states
    layout: TokenLayout  # [B, C]
    size: Float32[Array, "B C"]  # how many original tokens each stands for


class LayerInputs(NamedTuple):
    """Inputs that all layers of one block share."""

    cos: Float32[Array, "B C F"]
    sin: Float32[Array, "B C F"]
    segment: Int32[Array, "B C"]  # 0 at padding
    # The last token that each may attend to, where frames are attended to in both directions.
    reach: Int32[Array, "B C"] | None = None


def prefill(
    config: ModelConfig,
    weights: Weights,
    rows: Rows,
    merging: Merging = NO_MERGING,
    lengths: ChooseLength = GRID,
) -> Prefix:
    """Runs prompts through the decoder and keeps the keys and values.

    Instead of the model's own merging layers, those of `merging` act; `lengths` chooses the length
    after each of them.
    """
    # Without merging layers of its own, so that the same programs serve any of them.
    config, merges = with_merging(config, NO_MERGING), with_merging(config, merging)
    blocks, last = layer_blocks(merges, merging=True), config.num_layers - 1
    tokens, fusion = embed_rows(config, weights, rows)
    survivors = (to_host(rows.layout.kind) != Kind.PAD).sum(axis=1)
    caches, counts = [], []
    for block in blocks:
        if block.merge is not None:
            tokens, merged = merge_tokens(merges, tokens, block.merge, lengths)
            survivors = to_host(merged.stats.survivors)
            del merged  # its hidden states have the length before the cut
        inputs, x = layer_inputs(config, tokens.layout, rows.stretch), tokens.x
        for index in range(block.start, block.stop):
            if index < last:
                x, cache = run_layer(config, weights.layers[index], x, inputs)
            else:
                cache = run_last_layer(config, weights.layers[index], x, inputs)
            caches.append(cache)
        tokens = tokens._replace(x=x)
        counts.append(survivors)
    return Prefix(
        config=config,
        layers=tuple(caches),
        blocks=blocks,
        tokens=np.asarray(counts, np.int32),
        length=np.asarray(rows.length, np.int32),
        stretch=rows.stretch,
        fusion=fusion,
    )


def embed_rows(config: ModelConfig, weights: Weights, rows: Rows) -> tuple[Tokens, Any]:
    """The decoder's input; and the weights of a MERV's encoders [B, clips, E], or None."""
    layout: TokenLayout = jax.tree.map(jnp.asarray, rows.layout)
    x, fusion = embed_program(config, weights._replace(layers=()), rows.patches, layout)
    return Tokens(x, layout, jnp.ones(layout.kind.shape, jnp.float32)), fusion


def merge_tokens(
    config: ModelConfig, tokens: Tokens, index: int, lengths: ChooseLength
) -> tuple[Tokens, Merged]:
    """Merges before a layer block and cuts the batch to the length that the survivors need.

    Returns the survivors, and the result of the merging layer before the cut.
    """
    merged = _merge(config, *tokens, index)
    longest = int(to_host(merged.stats.survivors).max())
    length = min(lengths(f"merge {index}", longest), tokens.layout.kind.shape[1])
    return Tokens(*_cut((merged.x, merged.layout, merged.size), length)), merged


@partial(jax.jit, static_argnums=0)
def embed_program(
    config: ModelConfig, weights: Weights, patches: UInt8[AnyArray, "B N K"], layout: TokenLayout
) -> tuple[Float[Array, "B S D"], Float32[Array, "B clips E"] | None]:
    """`params.embed`, compiled."""
    return params_module.embed(config, weights, patches, layout)


@partial(jax.jit, static_argnums=(0, 4))
def _merge(config, x, layout, size, index):
    return merge_batch(config, x, layout, size, index)


@partial(jax.jit, static_argnums=1)
def _cut(tree, length):
    """Keeps the first `length` tokens; the survivors come first."""
    return jax.tree.map(lambda leaf: leaf[:, :length], tree)


@partial(jax.jit, static_argnums=0)
def layer_inputs(
    config: ModelConfig, layout: TokenLayout, stretch: Int32[AnyArray, " B"]
) -> LayerInputs:
    """Inputs that the layers of a block share; `stretch` says how each row's RoPE is scaled."""
    position, segment = jnp.asarray(layout.position), jnp.asarray(layout.segment)
    reach = frame_reach(layout.frame) if config.frame_attention == "bidirectional" else None
    return LayerInputs(*row_cos_sin(config, position, stretch), segment, reach)


def apply_layer(
    config: ModelConfig, params: Any, x: Float[Array, "B C D"], inputs: LayerInputs
) -> tuple[Float[Array, "B C D"], PrefixCache]:
    """One decoder layer on rows that each hold one example, with its padding after it."""
    attend: Callable[..., jax.Array] = partial(packed_attention, single=True)
    if inputs.reach is not None:
        attend = partial(frame_attention, turn=None, reach=inputs.reach)
    attend = partial(
        attend, segment=inputs.segment, implementation=config.attention, split=attention_split()
    )
    layer = DecoderLayer(config, parent=None)
    applied: Any = layer.apply({"params": params}, x, inputs.cos, inputs.sin, attend)
    x, (k, v) = applied
    k, v = split_heads(k.swapaxes(1, 2)), split_heads(v.swapaxes(1, 2))
    return x, PrefixCache(k, v, inputs.segment > 0)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def run_layer(
    config: ModelConfig, params: Any, x: Float[Array, "B C D"], inputs: LayerInputs
) -> tuple[Float[Array, "B C D"], PrefixCache]:
    """`apply_layer`, compiled; `x` is used up."""
    return apply_layer(config, params, x, inputs)


@partial(jax.jit, static_argnums=0)
def run_last_layer(
    config: ModelConfig, params: Any, x: Float[Array, "B C D"], inputs: LayerInputs
) -> PrefixCache:
    """The keys and values of the last layer alone.

    Without its hidden states, which prefill does not need, XLA drops its attention output and MLP.
    """
    return apply_layer(config, params, x, inputs)[1]
