"""Frames in Qwen2-VL's numbers and sizes, within the paper's limits of pixels (recaptioning)."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from elva_jax.errors import VideoError
from elva_jax.tools.recaption.engine import Kind
from elva_jax.tools.recaption.manifest import Item
from elva_jax.video.read import Frames, read_frames, sample_times
from elva_jax.video.resize import LazyFrame

MAX_PIXELS: dict[Kind, int] = {"image": 1280 * 28 * 28, "video": 360 * 420}  # per frame
FACTOR = 28  # edge of a visual token in pixels: 2x2 patches of 14
FPS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Frames of a medium that the model gets, and their size in pixels."""

    frames: int
    height: int
    width: int

    def tokens(self, frames_per_token: int) -> int:
        """The number of visual tokens if each covers `frames_per_token` frames."""
        per_frame = (self.height // FACTOR) * (self.width // FACTOR)
        return -(-self.frames // frames_per_token) * per_frame


def load(item: Item, max_frames: int) -> list[np.ndarray]:
    """Reads an image, or a video at one frame per second but at most `max_frames` evenly spread.

    Returns:
      Frames as uint8 [H, W, 3].

    Raises:
      VideoError: the medium cannot be read, lies outside the folder of media, or is too long and
        thin for the model.
    """
    return _read(item, **_sampling(item, max_frames)).pixels


def measure(item: Item, max_frames: int) -> Size:
    """The size that `load` would return, from a single decoded frame.

    Raises:
      VideoError: as `load`.
    """
    found = _read(item, num_frames=1)
    count = 1
    if item.kind == "video":
        count = len(sample_times(Fraction(found.duration), **_sampling(item, max_frames)))
    height, width = found.pixels[0].shape[:2]
    return Size(frames=count, height=height, width=width)


def _read(item: Item, **sampling: Any) -> Frames:
    if item.path is None:
        raise VideoError(
            item.medium, "leads out of the folder of media; name it relative to --media-dir"
        )
    try:
        return read_frames(item.path, **sampling, transform=lambda picture: _fit(picture, item))
    except OSError as error:  # for example a name that is too long, or a folder without permission
        raise VideoError(item.medium, f"cannot be opened ({error.strerror})") from None


def _sampling(item: Item, max_frames: int) -> dict[str, Any]:
    if item.kind == "image":
        return {"num_frames": 1, "fps": None}
    return {"num_frames": max_frames, "fps": FPS}


def _fit(picture: LazyFrame, item: Item) -> np.ndarray:
    limit = MAX_PIXELS[item.kind]
    try:
        size = smart_resize(picture.height, picture.width, factor=FACTOR, max_pixels=limit)
    except ValueError as error:
        raise VideoError(item.medium, str(error)) from None
    return picture.at(size)
