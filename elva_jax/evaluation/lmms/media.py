"""Videos and images as the tasks of lmms-eval give them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elva_jax.data.example import Media
from elva_jax.errors import DataError
from elva_jax.utils import numbers

STARTS = ("video_start", "start_time", "start")
ENDS = ("video_end", "end_time", "end")
SOURCES = ("bytes", "path", "video", "image", "url")


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Frames at hand, uint8 [H, W, 3] each: one image, or the frames of a video.

    Two are equal if their pixels are.
    """

    frames: tuple[np.ndarray, ...]

    def __eq__(self, other: object) -> bool:
        """Whether the pixels are the same."""
        return isinstance(other, Pictures) and self.key == other.key

    def __hash__(self) -> int:
        """Of the pixels."""
        return hash(self.key)

    @functools.cached_property
    def key(self) -> Hashable:
        """Equal for equal pixels."""
        digest = hashlib.blake2b(digest_size=16)
        for frame in self.frames:
            digest.update(repr(frame.shape).encode())
            digest.update(np.ascontiguousarray(frame).data)
        return digest.digest()


Medium = Media | Pictures


def read_visuals(visuals: Any) -> tuple[Medium, ...]:
    """The media that a task's `doc_to_visual` returns; None and [] are none.

    Raises:
      DataError: sound, or something else that is no video or image.
    """
    if visuals is None:
        return ()
    listed = visuals if isinstance(visuals, (list, tuple)) else [visuals]
    return tuple(read_visual(visual) for visual in listed if visual is not None)


def read_visual(visual: Any, bounds: Mapping[str, Any] | None = None) -> Medium:
    """One medium: a path, a PIL image, an array, a dict of one with bounds, or a list of frames.

    Args:
      visual: what a task gives.
      bounds: the start and end of an excerpt, under any of the names in STARTS and ENDS.

    Raises:
      DataError: sound, something else that is no video or image, or bounds that cannot be.
    """
    if isinstance(visual, (str, Path, bytes)):
        source = visual if isinstance(visual, bytes) else str(visual)
        # A still image is a video of one frame; an animation is a video.
        start, end = _bounds(bounds or {})
        return Media(source, "video", start=start, end=end)
    if isinstance(visual, Image.Image):
        return Pictures((_pixels(visual),))
    if isinstance(visual, np.ndarray):
        return Pictures(tuple(map(_checked, visual if visual.ndim == 4 else [visual])))
    if isinstance(visual, (list, tuple)) and visual:
        frames = [read_visual(frame) for frame in visual]
        pictures = [frame for frame in frames if isinstance(frame, Pictures)]
        if len(pictures) == len(frames):
            return Pictures(tuple(frame for each in pictures for frame in each.frames))
        if all(isinstance(frame, str) for frame in visual):
            return Media(tuple(visual), "video")
    if isinstance(visual, Mapping):
        if "sampling_rate" in visual or "audio" in str(visual.get("type")):
            raise DataError("the task gives sound, which the model does not hear")
        given = [visual[name] for name in SOURCES if visual.get(name) is not None]
        if given:
            return read_visual(given[0], {**(bounds or {}), **visual})
    raise DataError(
        f"the task gives a {type(visual).__name__} in the place of a video or image; paths, PIL"
        " images, arrays and lists of frames are understood"
    )


def _bounds(given: Mapping[str, Any]) -> tuple[float, float | None]:
    start = next((given[name] for name in STARTS if given.get(name) is not None), 0.0)
    end = next((given[name] for name in ENDS if given.get(name) is not None), None)
    numbers.real(0).check("the start of an excerpt", start)
    if end is not None:
        numbers.real(0).check("the end of an excerpt", end)
        if float(end) <= float(start):
            raise DataError(f"the excerpt from {start} s to {end} s is empty")
    return float(start), None if end is None else float(end)


def _pixels(image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # decoded here: a damaged file
        raise DataError(f"an image cannot be decoded ({error})") from error


def _checked(frame: np.ndarray) -> np.ndarray:
    if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    raise DataError(
        f"a frame must be a uint8 array [height, width, 3], got {frame.dtype}{list(frame.shape)}"
    )


def frames_of(pictures: Pictures) -> Sequence[np.ndarray]:
    """The frames as `ElvaModel` takes them."""
    return list(pictures.frames)
