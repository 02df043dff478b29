"""Accuracies that need no understanding of the video, shown beside every result.

`blind` asks the model without the video, `single_frame` with its middle frame alone (both in
`evaluation.measurements`); `any_object` needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from elva_jax.evaluation.answers import normalize
from elva_jax.video.clip import Visual, keep_frames


def any_object(answer: str, options: Sequence[str], named_objects: Sequence[str]) -> float:
    """Expected accuracy of a uniform choice among the options that name an object of the video.

    If no option does (colors, counts and so on), the choice is among all options.
    """
    names = {normalize(name) for name in named_objects}
    candidates = [option for option in options if normalize(option) in names] or list(options)
    return sum(normalize(option) == normalize(answer) for option in candidates) / len(candidates)


def middle_frame(visual: Visual) -> Visual:
    """The middle frame of those that the model would have seen (the later of two)."""
    count = visual.merv.slots if visual.merv else len(visual.clip.grids)
    return keep_frames(visual, [count // 2])
