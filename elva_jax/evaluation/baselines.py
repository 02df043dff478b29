"""What can be had without understanding the video: the floors that stand beside every accuracy.

`blind` asks the model without the video, `single_frame` with the middle frame only (both in `evaluation.run`); `any_object` needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from elva_jax.evaluation.answers import normalise
from elva_jax.video.clip import Visual, keep_frames


def any_object(answer: str, options: Sequence[str], named_objects: Sequence[str]) -> float:
    """Expected accuracy of picking, uniformly, one of the options that name an object of the video.

    Where no option names one (colours, counts …) the pick is uniform over all options.
    """
    names = {normalise(name) for name in named_objects}
    candidates = [option for option in options if normalise(option) in names] or list(options)
    return sum(normalise(option) == normalise(answer) for option in candidates) / len(candidates)


def middle_frame(visual: Visual) -> Visual:
    """The middle one of the frames that the model would have seen (the later one of an even number)."""
    return keep_frames(visual, [len(visual.clip.grids) // 2])
