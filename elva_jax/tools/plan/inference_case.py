"""The load of a model that answers, and the lengths of its sequences.

    header + video ─ layers 0 … k-1 ─ merge ─ layers k … m-1 ─ …       + question + answer
    [B, S]                            [B, C1]                          suffix slots

Lengths are padded to the grid of `inference/batching.py`, as they are when a model answers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from elva_jax.config.schema import ModelConfig
from elva_jax.data.decode_example import merv_settings
from elva_jax.errors import ConfigError
from elva_jax.inference.batching import GRID, grid_batch, grid_length
from elva_jax.models.elva import layer_blocks, merging_of
from elva_jax.video.hybrid import Hybrid, choose_high
from elva_jax.video.layout import Clip, clip_tokens

HEADER = 32  # text tokens before the video: the chat's system turn
QUESTION = 64  # text tokens after it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and one batch of questions about videos of square frames.

    Attributes:
      model: the model; its `dtype` is the compute type.
      weights: the compute type, int8 or int4.
      frames: of each video.
      edge: their longest edge in pixels.
      hybrid: frames of two sizes instead; None: all have one.
      batch: videos with one question each.
      merging: whether the model's merging layers act.
      kept: share of the mergeable tokens that each merging layer leaves.
      max_new_tokens: longest answer.
    """

    model: ModelConfig
    weights: str
    frames: int
    edge: int
    hybrid: Hybrid | None = None
    batch: int = 1
    merging: bool = True
    kept: tuple[float, ...] = ()
    max_new_tokens: int = 512

    @property
    def clip(self) -> Clip:
        """The video: square frames, the largest of an edge; MERV's clip is always the same."""
        if self.model.encoders:
            return merv_settings(self.model).clip
        patch = self.model.patch_size
        bare = self.model.tower is not None
        if self.hybrid is None:
            return Clip((_grid(self.edge, patch),) * self.frames, bare=bare)
        is_high = choose_high(self.hybrid.high_frames, self.hybrid.low_frames)
        high, low = (_grid(e, patch) for e in (self.hybrid.high_edge, self.hybrid.low_edge))
        return Clip(tuple(high if h else low for h in is_high), bare=bare)

    @property
    def rows(self) -> int:
        """Rows of the padded batch."""
        return grid_batch(self.batch)

    @property
    def tokens(self) -> int:
        """Tokens of a row: header, video, question and answer."""
        return HEADER + clip_tokens(self.clip) + QUESTION + self.max_new_tokens

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """For each block of layers between merges: its layers, and the padded length C."""
        clip, merging = self.clip, merging_of(self.model)
        mergeable = sum(rows * columns for rows, columns in clip.grids)
        tubes = sum(rows * columns for rows, columns in set(clip.grids))
        if merging.merge_lines:
            mergeable += sum(rows for rows, _ in clip.grids)
            tubes += sum(rows for rows, _ in set(clip.grids))
        rest = HEADER + clip_tokens(clip) - mergeable
        left, lengths, longest = mergeable, [], None
        for block in layer_blocks(self.model, merging=self.merging):
            if block.merge is not None:
                left = max(min(tubes, left), math.ceil(self.kept[block.merge] * left))
            length = GRID("", rest + left)
            longest = length if longest is None else min(longest, length)
            lengths.append((block.num_layers, longest))
        return tuple(lengths)

    @property
    def length(self) -> int:
        """The padded length S of the prefix before any merge."""
        return GRID("", HEADER + clip_tokens(self.clip))

    @property
    def slots(self) -> int:
        """Slots of the suffix cache, for the question and the answer."""
        return grid_length(QUESTION) + grid_length(self.max_new_tokens, 8)


def _grid(edge: int, patch: int) -> tuple[int, int]:
    if edge < patch:
        raise ConfigError(f"--edge: frames of {edge} px hold no patch of {patch} px")
    return edge // patch, edge // patch


def shares_kept(model: ModelConfig, given: Sequence[float] | None) -> tuple[float, ...]:
    """The share of the mergeable tokens that each merging layer leaves.

    By default it is the layer's ratio, which it never exceeds, and 1 where a threshold alone
    decides: then a video in which nothing is alike keeps all tokens.

    Raises:
      ConfigError: another number of shares than of merging layers.
    """
    layers = merging_of(model).layers
    if given is None:
        return tuple(1.0 if rule.policy == "threshold" else rule.ratio for rule in layers)
    if len(given) != len(layers):
        raise ConfigError(
            f"--kept: {len(given)} shares for {len(layers)} merging layers; give one for each"
        )
    return tuple(given)
