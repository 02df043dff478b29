"""Frames as Qwen2-VL takes them: their number, and their size within the limits of pixels (paper, recaptioning)."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from elva_jax.errors import VideoError
from elva_jax.tools.recaption.engine import Kind
from elva_jax.tools.recaption.manifest import Item
from elva_jax.video.picture import Picture
from elva_jax.video.read import Frames, read_frames, sample_times

MAX_PIXELS: dict[Kind, int] = {"image": 1280 * 28 * 28, "video": 360 * 420}  # of a frame
FACTOR = 28  # pixels of a visual token's edge: 2x2 patches of 14
FPS = 1.0


class Size(NamedTuple):
    """How much of a medium the model sees."""

    frames: int
    height: int  # pixels
    width: int

    def tokens(self, frames_per_token: int) -> int:
        """Visual tokens, where each covers that many frames."""
        return (
            -(-self.frames // frames_per_token) * (self.height // FACTOR) * (self.width // FACTOR)
        )


def load(item: Item, max_frames: int) -> list[np.ndarray]:
    """The frames of an item, uint8 [H, W, 3] each: the image, or the video at one frame a second, at most `max_frames` evenly spread.

    Raises:
      VideoError: the medium cannot be read, leads out of the folder of media, or is too long and thin for the model.
    """
    return _read(item, **_sampling(item, max_frames)).pixels


def measure(item: Item, max_frames: int) -> Size:
    """The size that `load` would give, decoding one frame only.

    Raises:
      VideoError: as `load`.
    """
    found = _read(item, num_frames=1)
    count = (
        1
        if item.kind == "image"
        else len(sample_times(Fraction(found.duration), **_sampling(item, max_frames)))
    )
    return Size(count, *found.pixels[0].shape[:2])


def _read(item: Item, **sampling) -> Frames:
    if item.path is None:
        raise VideoError(
            item.medium, "leads out of the folder of media; name it relative to --media-dir"
        )
    try:
        return read_frames(item.path, **sampling, transform=lambda picture: _fit(picture, item))
    except OSError as error:  # such as a name that is too long, or a folder that may not be listed
        raise VideoError(item.medium, f"cannot be opened ({error.strerror})") from None


def _sampling(item: Item, max_frames: int) -> dict:
    return (
        dict(num_frames=1, fps=None)
        if item.kind == "image"
        else dict(num_frames=max_frames, fps=FPS)
    )


def _fit(picture: Picture, item: Item) -> np.ndarray:
    try:
        return picture.at(
            smart_resize(
                picture.height, picture.width, factor=FACTOR, max_pixels=MAX_PIXELS[item.kind]
            )
        )
    except ValueError as error:
        raise VideoError(item.medium, str(error)) from None
