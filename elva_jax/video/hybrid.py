"""Hybrid resolution (paper, section 3.2): some of a video's frames are read at high resolution, the others at low."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from elva_jax.errors import ConfigError
from elva_jax.video.picture import Picture
from elva_jax.video.resize import target_size

POLICIES = ("interleave", "ends", "scene")
GREY_SIDE = 32  # pixels of the grey pictures whose differences 'scene' measures


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """How many frames of a video are read, and how large each is; the paper's defaults. With `low_frames=0` all frames are alike.

    A video with fewer frames than asked for, or frames at hand, which are all taken, keep the shares of high and low ones.

    Raises:
      ConfigError: a negative count, no frame at all, an edge that is not positive, a low edge above the high one, or an unknown policy.
    """

    high_frames: int = 32  # most frames at high resolution
    low_frames: int = 32  # most frames at low resolution
    high_edge: int = 672  # longest edge of the high ones, in pixels
    low_edge: int = 336  # longest edge of the low ones, in pixels
    policy: str = "interleave"  # which are high: interleave (evenly spread) | ends | scene (those that change most)

    def __post_init__(self):
        for name in ("high_frames", "low_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: cannot be negative")
        if not self.frames:
            raise ConfigError("high_frames=0 and low_frames=0: a video needs at least one frame")
        for name in ("high_edge", "low_edge"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1 pixel")
        if self.high_frames and self.low_frames and self.low_edge > self.high_edge:
            raise ConfigError(
                f"low_edge={self.low_edge} exceeds high_edge={self.high_edge}; make it less, or exchange them"
            )
        if self.policy not in POLICIES:
            raise ConfigError(
                f"hybrid-resolution policy '{self.policy}' is unknown; use one of {', '.join(POLICIES)}"
            )

    @property
    def frames(self) -> int:
        """Most frames of a video, high and low."""
        return self.high_frames + self.low_frames


def complete(longest_edge: int, patch_size: int, **given: int | str | None) -> Hybrid | None:
    """The reading of which only some fields are given; None where all are None.

    The high edge is by default a stage's `longest_edge`, the low one `low_edge_beside` it; other fields have the dataclass's defaults.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    if not fields:
        return None
    high_edge = fields.setdefault("high_edge", longest_edge)
    fields.setdefault("low_edge", low_edge_beside(high_edge, patch_size))
    return Hybrid(**fields)


def low_edge_beside(high_edge: int, patch_size: int) -> int:
    """The low edge where none is given: the paper's 336 pixels, but at most half of the high one, in whole patches (one at least)."""
    return min(Hybrid.low_edge, high_edge, max(high_edge // 2 // patch_size, 1) * patch_size)


def choose_high(
    num_high: int, num_low: int, policy: str = "interleave", change: np.ndarray | None = None
) -> np.ndarray:
    """Says of each of T = num_high + num_low frames in temporal order whether it is a high-resolution one.

    Args:
      num_high: frames at high resolution.
      num_low: frames at low resolution.
      policy: 'interleave' spreads the high frames evenly over the video; 'ends' puts them at both ends (an odd one at the start);
        'scene' takes those with the greatest change, of equals the earlier.
      change: float [T], how much each frame differs from the one before it; for 'scene' alone.

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
        high[np.argsort(-change, kind="stable")[:num_high]] = True
    return high


class Reduced(NamedTuple):
    """What is kept of a decoded frame until the last one is read: only then is it known which are high."""

    high: np.ndarray | None  # uint8 [h, w, 3]; None where no frame is high
    low: np.ndarray | None  # uint8 [h, w, 3]; None where no frame is low
    grey: np.ndarray | None  # uint8 [GREY_SIDE, GREY_SIDE], for 'scene'


def reduce_frame(
    picture: Picture, hybrid: Hybrid, *, patch_size: int, upscale: bool = False, square: int = 0
) -> Reduced:
    """Draws a frame at either size that it may have in the end; see `video.resize.target_size`.

    With `square`, frames are squashed to that side instead, as a vision tower reads them.

    Raises:
      ConfigError: a square is asked for together with frames of two sizes.
    """
    if square and hybrid.high_frames and hybrid.low_frames:
        raise ConfigError(
            f"hybrid resolution: an encoder-based model reads squares of {square} pixels alone; leave it off"
        )
    if square:
        squashed = square_frame(picture, square, patch_size)
        return Reduced(squashed, squashed, None)

    def resized(edge: int) -> np.ndarray:
        return picture.at(
            target_size(
                picture.height,
                picture.width,
                longest_edge=edge,
                patch_size=patch_size,
                upscale=upscale,
            )
        )

    high = resized(hybrid.high_edge) if hybrid.high_frames else None
    low = resized(hybrid.low_edge) if hybrid.low_frames else None
    return Reduced(high, low, grey_picture(picture.pixels()) if hybrid.policy == "scene" else None)


def square_frame(picture: Picture, side: int, patch_size: int) -> np.ndarray:
    """Squashes a frame to a vision tower's square of `side` pixels, without what is beyond its last whole patch, which no tower sees."""
    whole = side // patch_size * patch_size
    return picture.at((side, side))[:whole, :whole]


def settle(reduced: Sequence[Reduced], hybrid: Hybrid) -> list[np.ndarray]:
    """The T frames of a video in temporal order, uint8 [h, w, 3], each at the size that the policy gives it."""
    if not reduced:
        return []
    total = len(reduced)
    num_high = (
        min(total, max(1, round(total * hybrid.high_frames / hybrid.frames)))
        if hybrid.high_frames
        else 0
    )
    change = frame_change([frame.grey for frame in reduced]) if hybrid.policy == "scene" else None
    high = choose_high(num_high, total - num_high, hybrid.policy, change)
    return [
        frame.high if chosen else frame.low for frame, chosen in zip(reduced, high, strict=True)
    ]


def grey_picture(frame: np.ndarray) -> np.ndarray:
    """A frame, uint8 [H, W, 3], squashed to a small grey picture, uint8 [GREY_SIDE, GREY_SIDE], by the mean of what falls into a pixel."""
    return np.asarray(
        Image.fromarray(frame).convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX)
    )


def frame_change(grey: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [T]: the sum of absolute differences of each grey picture from the one before it; infinite for the first."""
    steps = np.abs(np.diff(np.asarray(grey, np.int64), axis=0)).sum(axis=(1, 2))
    return np.concatenate([[np.inf], steps])
