"""Sizes of an example: its tokens, patches and frames, and the tokens that merging leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from elva_jax.video.layout import Kind, TokenLayout


class Counts(NamedTuple):
    """The parts of a packed sequence that an example uses."""

    tokens: int
    patches: int
    frames: int
    merged_tokens: int  # maximum number of tokens that remain after merging


def count(
    layout: TokenLayout, *, merge_lines: bool = False, merges: Sequence[tuple[str, float]] = ()
) -> Counts:
    """Counts one unbatched layout.

    Args:
      layout: the layout of one example.
      merge_lines: whether `<LINE>` tokens merge along their tubes.
      merges: policy and ratio of the merging layers up to the smallest bucket. `merged_tokens` is
        the maximum number of tokens that they leave for any video, or without ratios among them
        the number that no merge removes: text, special tokens and one token per tube.
    """
    kind = layout.kind
    mergeable = kind == Kind.PATCH
    if merge_lines:
        mergeable = mergeable | (kind == Kind.LINE)
    used = kind != Kind.PAD
    tubes = len(np.unique(layout.tube[mergeable]))
    left = max_remaining(int(mergeable.sum()), tubes, merges)
    return Counts(
        tokens=int(used.sum()),
        patches=int((kind == Kind.PATCH).sum()),
        frames=int(layout.frame.max(initial=-1)) + 1,
        merged_tokens=int((used & ~mergeable).sum()) + left,
    )


def max_remaining(mergeable: int, tubes: int, merges: Sequence[tuple[str, float]]) -> int:
    """Maximum number of mergeable tokens of an example that remain; see `merges` of `count`."""
    ratios = [
        (policy, Fraction(ratio).limit_denominator(10_000))
        for policy, ratio in merges
        if policy != "threshold"
    ]
    left = mergeable if ratios else tubes
    for policy, ratio in ratios:
        # Pooling rounds in each tube separately, and may leave one more token per tube.
        ends = tubes if policy == "pool" else 0
        left = max(tubes, min(left, math.ceil(ratio * left) + ends))
    return left
