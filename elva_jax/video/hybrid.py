"""Hybrid resolution (paper, section 3.2): a video has high-resolution and low-resolution frames.

high_frames=2, low_frames=4     interleave   l H l l H l       ends   H l l l l H
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from elva_jax.errors import ConfigError
from elva_jax.utils import numbers
from elva_jax.video.resize import LazyFrame, target_size

Policy = Literal["interleave", "ends", "scene"]
POLICIES: tuple[str, ...] = get_args(Policy)
GRAY_SIDE = 32  # side in pixels of the gray thumbnails that 'scene' compares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Number and sizes of the frames read from a video; the defaults are the paper's.

    With `low_frames=0` all frames have one size. If a video has another number of frames (a shorter
    video, or frames in memory, which are all used), the ratio of high to low frames is kept.

    Attributes:
      high_frames: maximum number of high-resolution frames.
      low_frames: maximum number of low-resolution frames.
      high_edge: longest edge of the high-resolution frames, in pixels.
      low_edge: longest edge of the low-resolution frames, in pixels.
      policy: which frames are high: "interleave" (evenly spread), "ends" (at both ends) or "scene"
        (those that change most).

    Raises:
      ConfigError: a number of frames is negative or both are 0, an edge is not positive, the low
        edge exceeds the high one, or the policy is unknown.

    Example:
      >>> import elva_jax
      >>> elva_jax.Hybrid(high_frames=8, low_frames=24).frames
      32
    """

    high_frames: int = 32
    low_frames: int = 32
    high_edge: int = 672
    low_edge: int = 336
    policy: str = "interleave"

    def __post_init__(self) -> None:
        """Validates the values."""
        for name in ("high_frames", "low_frames"):
            numbers.whole(0, numbers.MOST_FRAMES).check(name, getattr(self, name))
        if not self.frames:
            raise ConfigError("high_frames=0 and low_frames=0: a video needs at least one frame")
        for name in ("high_edge", "low_edge"):
            numbers.EDGE.check(name, getattr(self, name))
        if self.high_frames and self.low_frames and self.low_edge > self.high_edge:
            raise ConfigError(
                f"low_edge={self.low_edge} exceeds high_edge={self.high_edge}; "
                "make it smaller, or swap them"
            )
        if self.policy not in POLICIES:
            raise ConfigError(
                f"hybrid-resolution policy '{self.policy}' is unknown; "
                f"use one of {', '.join(POLICIES)}"
            )

    @property
    def frames(self) -> int:
        """Maximum number of frames of a video, high and low."""
        return self.high_frames + self.low_frames


def complete(longest_edge: int, patch_size: int, **given: int | str | None) -> Hybrid | None:
    """A `Hybrid` with defaults in place of None; returns None if every field is None.

    The default of the high edge is the stage's `longest_edge`, that of the low edge is computed by
    `default_low_edge`; the other defaults are those of the class.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    if not fields:
        return None
    high_edge = fields.setdefault("high_edge", longest_edge)
    fields.setdefault("low_edge", default_low_edge(int(high_edge), patch_size))
    return Hybrid(**fields)  # type: ignore[arg-type]  # `Hybrid` validates it


def default_low_edge(high_edge: int, patch_size: int) -> int:
    """The default low edge: 336 pixels as in the paper, but at most half of the high edge."""
    return min(Hybrid.low_edge, high_edge, max(high_edge // 2 // patch_size, 1) * patch_size)


def choose_high(
    num_high: int, num_low: int, policy: str = "interleave", change: np.ndarray | None = None
) -> np.ndarray:
    """Marks the high-resolution frames among T = num_high + num_low frames in temporal order.

    Args:
      num_high: number of high-resolution frames.
      num_low: number of low-resolution frames.
      policy: 'interleave' spreads the high frames evenly over the video; 'ends' puts them at both
        ends (one more at the start if their number is odd); 'scene' chooses the frames with the
        greatest change, the earlier one of equals.
      change: float [T], the difference of each frame from its predecessor; only for 'scene'.

    Returns:
      bool [T] with num_high True.
    """
    total = num_high + num_low
    high = np.zeros(total, bool)
    if policy == "interleave":
        high[(2 * np.arange(num_high) + 1) * total // (2 * max(num_high, 1))] = True
    elif policy == "ends":
        high[: (num_high + 1) // 2] = True
        high[total - num_high // 2 :] = True
    else:
        assert change is not None
        high[np.argsort(-change, kind="stable")[:num_high]] = True
    return high


class SizedFrame(NamedTuple):
    """A decoded frame in every size that may be needed; its resolution is chosen later."""

    high: np.ndarray | None  # uint8 [h, w, 3]; None where no frame is high
    low: np.ndarray | None  # uint8 [h, w, 3]; None where no frame is low
    gray: np.ndarray | None  # uint8 [GRAY_SIDE, GRAY_SIDE], for 'scene'


def draw_sizes(
    frame: LazyFrame, hybrid: Hybrid, *, patch_size: int, upscale: bool = False, square: int = 0
) -> SizedFrame:
    """Resizes a frame to every size that may be needed; see `video.resize.target_size`.

    With `square`, the frame is stretched to a square of that side instead, as a vision tower
    requires.

    Raises:
      ConfigError: `square` is combined with frames of two sizes.
    """
    if square and hybrid.high_frames and hybrid.low_frames:
        raise ConfigError(
            f"hybrid resolution: an encoder-based model reads only squares of {square} pixels; "
            "leave hybrid resolution off"
        )
    if square:
        squashed = square_frame(frame, square, patch_size)
        return SizedFrame(squashed, squashed, None)

    def resized(edge: int) -> np.ndarray:
        size = target_size(
            frame.height, frame.width, longest_edge=edge, patch_size=patch_size, upscale=upscale
        )
        return frame.at(size)

    high = resized(hybrid.high_edge) if hybrid.high_frames else None
    low = resized(hybrid.low_edge) if hybrid.low_frames else None
    return SizedFrame(high, low, thumbnail(frame.pixels()) if hybrid.policy == "scene" else None)


def square_frame(frame: LazyFrame, side: int, patch_size: int) -> np.ndarray:
    """Stretches a frame to a square of `side` pixels, then crops it to whole patches.

    A vision tower ignores the pixels beyond the last whole patch.
    """
    whole = side // patch_size * patch_size
    return frame.at((side, side))[:whole, :whole]


def assign_resolution(frames: Sequence[SizedFrame], hybrid: Hybrid) -> list[np.ndarray]:
    """Chooses the size of each frame of a video by the policy; returns frames uint8 [h, w, 3]."""
    if not frames:
        return []
    total, num_high = len(frames), 0
    if hybrid.high_frames:
        num_high = min(total, max(1, round(total * hybrid.high_frames / hybrid.frames)))
    change = frame_change([frame.gray for frame in frames]) if hybrid.policy == "scene" else None
    high = choose_high(num_high, total - num_high, hybrid.policy, change)
    drawn = [frame.high if large else frame.low for frame, large in zip(frames, high, strict=True)]
    return [pixels for pixels in drawn if pixels is not None]


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """Averages a frame, uint8 [H, W, 3], to gray values uint8 [GRAY_SIDE, GRAY_SIDE]."""
    size = (GRAY_SIDE, GRAY_SIDE)
    return np.asarray(Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX))


def frame_change(gray: Sequence[np.ndarray | None]) -> np.ndarray:
    """float64 [T]: absolute difference of each thumbnail from the previous; inf for the first."""
    steps = np.abs(np.diff(np.asarray(gray, np.int64), axis=0)).sum(axis=(1, 2))
    return np.concatenate([[np.inf], steps])
