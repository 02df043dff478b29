"""Small videos, as frames and as layouts."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}


def tiny_video(
    frames: int = 4, height: int = 32, width: int = 32, *, color: str = "red", seed: int = 0
) -> list[np.ndarray]:
    """A square that moves to the right over noise that stays, so that some tokens merge.

    Args:
      frames: how many.
      height: in pixels.
      width: in pixels.
      color: of the square: red, green or blue.
      seed: of the noise.

    Returns:
      uint8 [height, width, 3] for each frame.

    Example:
      >>> from elva_jax import testing
      >>> len(testing.tiny_video(3)), testing.tiny_video(3)[0].shape
      (3, (32, 32, 3))
    """
    background = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    side = min(height, width) // 4
    video = [background.copy() for _ in range(frames)]
    for t, frame in enumerate(video):
        left = t * (width - side) // max(frames - 1, 1)
        frame[side : 2 * side, left : left + side] = COLORS[color]
    return video


def tiny_layout(frames: int = 2, rows: int = 2, columns: int = 3) -> TokenLayout:
    """A question, a clip and an answer to be learned, as one example.

    Example:
      >>> from elva_jax import testing
      >>> testing.tiny_layout().length  # 2 frames of 2 * 3 + 2 + 1 tokens, and 4 of text
      22
    """
    clip = Clip(((rows, columns),) * frames)
    return build_layout([clip, Text((1, 2)), Text((3, 4), weight=1.0)])


def endless_animation(side: int = 3000, frames: int = 400) -> bytes:
    """A GIF of a few MB that takes half a minute to decode, because it repeats one large frame."""
    out = io.BytesIO()
    more = [Image.new("P", (side, side), 1)]
    Image.new("P", (side, side)).save(out, "GIF", save_all=True, append_images=more, duration=40)
    data = out.getvalue()
    first = data.index(b"\x21\xf9")  # the graphic control extension before the first frame
    second = data.index(b"\x21\xf9", first + 8)
    return data[:first] + data[first:second] * frames + data[second:]
