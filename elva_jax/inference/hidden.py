"""Hidden states of a prompt, layer by layer, with and without merging."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.inference.batching import GRID, Rows
from elva_jax.inference.params import Weights, final_norm
from elva_jax.inference.prefill import embed_rows, layer_inputs, merge_tokens, run_layer
from elva_jax.models.elva import layer_blocks, with_merging
from elva_jax.ops.merging import NO_MERGING, MergeStats, Merging
from elva_jax.parallel.host_arrays import to_host
from elva_jax.video.layout import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockTokens:
    """The C tokens that one block of decoder layers works on.

    Attributes:
      start: number of layers before the block.
      stop: number of layers before its end.
      layout: [C] what each token is; survivors of a merge keep their own fields.
      size: float32 [C], how many original tokens each stands for.
      survivor: int32 [S], the index in C of the token that stands for each of the S original ones.
      merged: what the merging layer before the block did; None where there is none.
    """

    start: int
    stop: int
    layout: TokenLayout
    size: np.ndarray
    survivor: np.ndarray
    merged: MergeStats | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """The hidden states of one prompt.

    Attributes:
      states: float32 [C, D] by the number of layers before it: 0 is the decoder's input, l the
        output of the l-th layer. Its tokens are those of `block(l)`.
      final: float32 [C, D], the last layer's output after the final norm.
      layout: [S] the prompt's tokens before any merging.
      blocks: the decoder's blocks of layers, in order; tokens merge between them.
    """

    states: Mapping[int, np.ndarray]
    final: np.ndarray
    layout: TokenLayout
    blocks: tuple[BlockTokens, ...]

    def block(self, layer: int) -> BlockTokens:
        """The tokens that `states[layer]` is about."""
        if layer == 0 and self.blocks[0].merged is not None:
            return self._input()
        return next(block for block in self.blocks if layer <= block.stop)

    def _input(self) -> BlockTokens:
        length = self.layout.length
        return BlockTokens(
            start=0,
            stop=0,
            layout=self.layout,
            size=np.ones(length, np.float32),
            survivor=np.arange(length, dtype=np.int32),
            merged=None,
        )


def collect(
    config: ModelConfig,
    weights: Weights,
    rows: Rows,
    layers: Sequence[int] | None = None,
    merging: Merging = NO_MERGING,
) -> HiddenStates:
    """The hidden states of a batch of one row, after `layers` (None: after all).

    Instead of the model's own merging layers, those of `merging` act.
    """
    config, merges = with_merging(config, NO_MERGING), with_merging(config, merging)
    total = config.num_layers
    wanted = set(range(total + 1) if layers is None else layers)
    if wrong := sorted(layer for layer in wanted if not 0 <= layer <= total):
        raise ConfigError(f"layers: {wrong} are not within 0 … {total}, the model's layers")
    (tokens, _), length = embed_rows(config, weights, rows), int(rows.length[0])
    layout = _first(tokens.layout, length)
    survivor = np.arange(length, dtype=np.int32)
    states = {0: _host(tokens.x, length)} if 0 in wanted else {}
    blocks = []
    for block in layer_blocks(merges, merging=True):
        stats = None
        if block.merge is not None:
            tokens, merged = merge_tokens(merges, tokens, block.merge, GRID)
            survivor = to_host(merged.survivor)[0][survivor]
            stats = jax.tree.map(lambda count: int(count[0]), to_host(merged.stats))
            length = stats.survivors
        inputs, x = layer_inputs(config, tokens.layout, rows.stretch), tokens.x
        for index in range(block.start, block.stop):
            x, _ = run_layer(config, weights.layers[index], x, inputs)
            if index + 1 in wanted:
                states[index + 1] = _host(x, length)
        tokens = tokens._replace(x=x)
        blocks.append(
            BlockTokens(
                start=block.start,
                stop=block.stop,
                layout=_first(tokens.layout, length),
                size=to_host(tokens.size)[0, :length],
                survivor=survivor,
                merged=stats,
            )
        )
    final = _host(_final_norm(config, weights._replace(layers=()), tokens.x), length)
    return HiddenStates(states=states, final=final, layout=layout, blocks=tuple(blocks))


_final_norm = jax.jit(final_norm, static_argnums=0)


def _first(layout: TokenLayout, length: int) -> TokenLayout:
    """The tokens of the only row, without padding."""
    return TokenLayout(*(field[0, :length] for field in to_host(layout)))


def _host(x: Float[Array, "1 C D"], length: int) -> Float[np.ndarray, "length D"]:
    """A copy of the only row; the program that reads the array next may reuse its memory."""
    return np.array(to_host(x)[0, :length], np.float32)
