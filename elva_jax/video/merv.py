"""Reads a video as MERV's encoders see it (arXiv 2501.01426): a fixed number of frames as squares.

Of n frames, frame floor(i * (n - 1) / (F - 1)) is read for i = 0 ... F - 1. A video of fewer than F
frames repeats some, and an image is repeated F times.

A patch is the share of one visual token in the pixels of the clip. The pixels of all views, view by
view and slot by slot, are one run of bytes, which is cut into equal pieces: no piece is a region of
a frame, and only the pieces of a whole clip mean something.

The published code flips the frames of LanguageBind at random, at inference too. Nothing is flipped
here, so that answers are reproducible.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elva_jax.errors import VideoError
from elva_jax.video.layout import Clip
from elva_jax.video.read import WHOLE, Span, excerpt, name_of, open_media
from elva_jax.video.resize import LazyFrame

View = tuple[str, int, int]  # geometry, side in pixels, frame of the slot


@dataclasses.dataclass(frozen=True, kw_only=True)
class MervSettings:
    """How a video or image becomes the pixels of a clip.

    Attributes:
      num_frames: F, frames that are read.
      slots: steps in time of the visual tokens; they divide F.
      grid: visual tokens along each side of a slot.
      copies: how many times the tokens of a slot are repeated, once per encoder where these are
        concatenated in sequence.
      views: the pictures of every slot, as (geometry, side in pixels, frame of the slot).
      patch_values: bytes of a patch.
    """

    num_frames: int
    slots: int
    grid: int
    copies: int
    views: tuple[View, ...]
    patch_values: int

    @property
    def clip(self) -> Clip:
        """The grids of every clip."""
        return Clip(((self.grid, self.grid),) * (self.copies * self.slots), bare=True)

    def as_json(self) -> dict[str, Any]:
        """The settings as they are in a file of JSON."""
        return {**dataclasses.asdict(self), "views": [list(view) for view in self.views]}


def read_merv_patches(
    source: str | Path | bytes | tuple[str, ...] | list[LazyFrame],
    settings: MervSettings,
    *,
    name: str | None = None,
    span: Span = WHOLE,
) -> np.ndarray:
    """Reads, samples and resizes a video or image; uint8 [N, K] patches of `settings.clip`.

    Args:
      source: a path, the bytes of a file or paths of images as in `read_frames`, or frames in
        memory, which are sampled like those of a file.
      settings: number and shapes of the frames.
      name: name of the source in errors; by default its path.
      span: the seconds between which frames are sampled; frames in memory have no times.

    Raises:
      VideoError: the source cannot be read, or has no frames.
    """
    canvas = _Canvas(settings)
    if not isinstance(source, list):
        _read_file(source, canvas, name, span)
    elif source:
        for index, places in _places(0, len(source) - 1, settings.num_frames).items():
            canvas.draw(source[index], places)
    else:
        raise VideoError(name or "<frames>", "has no frames")
    return canvas.patches


def _read_file(
    source: str | Path | bytes | tuple[str, ...], canvas: _Canvas, name: str | None, span: Span
) -> None:
    if isinstance(source, str):
        source = Path(source)
    name = name or name_of(source)
    with closing(open_media(source, name)) as media:
        starts = media.starts()
        first, last = _range(starts, media.duration, span, name)
        wanted = _places(first, last, canvas.settings.num_frames)
        pending, shown = collections.deque(wanted), None
        for time, frame in media.frames_at([starts[index] for index in wanted]):
            # At moments that were passed over, the frame before is still displayed.
            while shown and starts[pending[0]] < time:
                canvas.draw(shown, wanted[pending.popleft()])
            shown = frame
        for index in pending:
            assert shown is not None  # a medium that opens has a frame
            canvas.draw(shown, wanted[index])


def _range(
    starts: Sequence[Fraction], duration: Fraction, span: Span, name: str
) -> tuple[float, float]:
    """The first and the last frame of a span, as numbers on the scale of frames."""
    if span == WHOLE:
        return 0, len(starts) - 1
    start, length = excerpt(duration, span, name)
    rate = len(starts) / duration
    first = min(float(start * rate), len(starts) - 1)
    return first, max(first, min(len(starts) - 1, float((start + length) * rate) - 1))


def _places(first: float, last: float, count: int) -> dict[int, list[int]]:
    """The frames to read, each with the places among `count` that it takes."""
    out: dict[int, list[int]] = {}
    for place, index in enumerate(np.linspace(first, last, count).astype(int).tolist()):
        out.setdefault(index, []).append(place)
    return out


def pictures(patches: np.ndarray, settings: MervSettings) -> dict[View, np.ndarray]:
    """The pictures uint8 [slots, size, size, 3] of each view, as parts of the patches."""
    out, flat, start = {}, patches.reshape(-1), 0
    for view in settings.views:
        shape = (settings.slots, view[1], view[1], 3)
        stop = start + math.prod(shape)
        out[view] = flat[start:stop].reshape(shape)
        start = stop
    return out


def keep_slots(patches: np.ndarray, settings: MervSettings, indices: Sequence[int]) -> np.ndarray:
    """The patches of a video of the first frames of some slots, in place of its own."""
    canvas, before = _Canvas(settings), pictures(patches, settings)
    for index, places in _places(0, len(indices) - 1, settings.num_frames).items():
        canvas.copy(before, indices[index], places)
    return canvas.patches


class _Canvas:
    """The patches of a clip, into which frames are drawn."""

    def __init__(self, settings: MervSettings):
        self.settings = settings
        tokens = settings.copies * settings.slots * settings.grid**2
        self.patches = np.zeros((tokens, settings.patch_values), np.uint8)
        self._views = pictures(self.patches, settings)

    def draw(self, frame: LazyFrame, places: Sequence[int]) -> None:
        """Draws a frame wherever a view shows one of its places among the F frames."""
        self._fill(places, functools.cache(functools.partial(to_square, frame)))

    def copy(self, views: Mapping[View, np.ndarray], slot: int, places: Sequence[int]) -> None:
        """Draws the first frame of a slot of other pictures, which every geometry has."""
        self._fill(places, lambda geometry, size: views[geometry, size, 0][slot])

    def _fill(self, places: Sequence[int], picture: Callable[[str, int], np.ndarray]) -> None:
        in_slot = self.settings.num_frames // self.settings.slots
        for slot, offset in (divmod(place, in_slot) for place in places):
            for (geometry, size, at), shown in self._views.items():
                if at == offset:
                    shown[slot] = picture(geometry, size)


def to_square(frame: LazyFrame, geometry: str, size: int) -> np.ndarray:
    """A frame as uint8 [size, size, 3].

    Args:
      frame: the frame.
      geometry: "stretch", as the other models of this package see squares; "bicubic" or "bilinear",
        Pillow's stretching with antialiasing, as MERV's code has it; "crop", see `crop_square`.
      size: the side in pixels.
    """
    if geometry == "stretch":
        return frame.at((size, size))
    pixels = frame.pixels()
    if geometry == "crop":
        return crop_square(pixels, size)
    resampling = Image.Resampling[geometry.upper()]
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling))


def crop_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The center of a frame whose short side is scaled to `size`, bilinear without antialiasing.

    The long side is rounded down. Where MERV's code has float pixels, these are rounded to uint8.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    lines = _taps(height, height * size // short, size)
    columns = _taps(width, width * size // short, size)

    def blend(values: np.ndarray, taps: tuple[np.ndarray, ...], axis: int) -> np.ndarray:
        low, high, weight = taps
        share = weight.reshape(-1, *(1,) * (values.ndim - 1 - axis))
        return values.take(low, axis) * (1 - share) + values.take(high, axis) * share

    blended = blend(blend(pixels, lines, 0), columns, 1)
    return np.rint(blended).astype(np.uint8)


def _taps(length: int, scaled: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbors of each of the `size` center pixels of a scaled axis, and their weights.

    Pixel i of the scaled axis is at (i + 1/2) * length / scaled - 1/2, as in PyTorch.
    """
    index = np.arange(size) + round((scaled - size) / 2)
    at = np.maximum((index + 0.5) * (length / scaled) - 0.5, 0.0)
    low = np.minimum(at.astype(np.int64), length - 1)
    return low, np.minimum(low + 1, length - 1), (at - low).astype(np.float32)
