"""Pictures of merged patches, and the files that hold them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from elva_jax.errors import ConfigError
from elva_jax.utils.failures import repr_path
from elva_jax.utils.read import check_output, open_output

OPTION = "--save-merge-map"
CELL = 28  # pixels of a patch's shorter edge, at least, so that numbers can be read
CAPTION, GAP = 16, 4  # pixels above each picture, and between pictures
DARK, SHARE = 40, 0.7  # gray of what is part of another token, and how much of it covers the patch
COLORS = ((255, 214, 10), (255, 145, 0), (255, 61, 0), (213, 0, 249))  # of 2, 3 to 4, 5 to 8, more
LARGEST_EDGE = 16_000  # pixels of a sheet
FRAMES_PER_SECOND = 2


def check_path(path: str | Path) -> Path:
    """Checks before any work that a merge map can be written there.

    Raises:
      ConfigError: another suffix than .mp4 and .png, or a file that cannot be written.
    """
    if Path(path).suffix.lower() not in (".mp4", ".png"):
        raise ConfigError(f"{OPTION} {repr_path(path)}: name a film (.mp4) or a sheet (.png)")
    return check_output(path, OPTION)


def color_of(size: int) -> tuple[int, int, int]:
    """The color of a token that stands for `size` patches."""
    return COLORS[min((size - 1).bit_length(), len(COLORS)) - 1]


def draw(
    frames: Sequence[np.ndarray], sizes: Sequence[Sequence[np.ndarray]], names: Sequence[str]
) -> list[np.ndarray]:
    """Pictures of one size, with even edges.

    Args:
      frames: uint8 [H, W, 3] each.
      sizes: for each frame, int [h, w] for each of the layers that are shown beside each other.
      names: of these layers.
    """
    patch = frames[0].shape[0] // sizes[0][0].shape[0]  # the same for frames of any size
    scale = max(1, math.ceil(CELL / patch))
    pictures = []
    for number, (frame, grids) in enumerate(zip(frames, sizes, strict=True)):
        parts = [
            _captioned(_overlay(frame, grid, scale), f"{name}, frame {number}", grid)
            for name, grid in zip(names, grids, strict=True)
        ]
        pictures.append(_beside(parts))
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    return [_padded(picture, height + height % 2, width + width % 2) for picture in pictures]


def _overlay(frame: np.ndarray, sizes: np.ndarray, scale: int) -> np.ndarray:
    """One frame, enlarged, with the sizes of its cells."""
    rows, columns = sizes.shape
    large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = large.shape[0] // rows, large.shape[1] // columns
    gone = (sizes == 0).repeat(height, axis=0).repeat(width, axis=1)[..., None]
    covered = (1 - SHARE) * large + SHARE * DARK
    picture = Image.fromarray(np.where(gone, covered.round(), large).astype(np.uint8))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for row, column in np.argwhere(sizes > 1):
        size, left, top = int(sizes[row, column]), int(column) * width, int(row) * height
        box = (left, top, left + width - 1, top + height - 1)
        pen.rectangle(box, outline=color_of(size), width=2)
        middle = left + width // 2, top + height // 2
        white, black = (255, 255, 255), (0, 0, 0)
        pen.text(middle, str(size), white, font, "mm", stroke_width=1, stroke_fill=black)
    return np.asarray(picture)


def _captioned(picture: np.ndarray, name: str, sizes: np.ndarray) -> np.ndarray:
    """A picture below a line about it."""
    height, width = picture.shape[:2]
    out = Image.new("RGB", (width, height + CAPTION), "black")
    text = f"{name}: {int((sizes > 0).sum())} of {sizes.size}"
    ImageDraw.Draw(out).text((2, 2), text, (255, 255, 255), font=ImageFont.load_default())
    out.paste(Image.fromarray(picture), (0, CAPTION))
    return np.asarray(out)


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.zeros((pictures[0].shape[0], GAP, 3), np.uint8)
    row = [piece for picture in pictures for piece in (picture, gap)]
    return np.concatenate(row[:-1], axis=1)


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    more = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((0, more[0]), (0, more[1]), (0, 0)))


def save(pictures: Sequence[np.ndarray], path: Path) -> None:
    """Writes pictures of one size to a path that `check_path` has allowed.

    Raises:
      ConfigError: a sheet larger than LARGEST_EDGE, or a file that cannot be written.
    """
    data = film(pictures) if path.suffix.lower() == ".mp4" else sheet(pictures, path)
    with open_output(path, OPTION, "wb") as file:
        file.write(data)


def film(pictures: Sequence[np.ndarray]) -> bytes:
    """An mp4 of pictures with even edges."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        options = {"crf": "12"} if codec == "libx264" else {"qscale": "2"}
        stream: Any = container.add_stream(codec, rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def sheet(pictures: Sequence[np.ndarray], path: Path) -> bytes:
    """A png of all pictures, in rows of about as many as there are rows."""
    height, width = pictures[0].shape[:2]
    columns = max(1, round(math.sqrt(len(pictures) * height / width)))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = columns * (width + GAP), rows * (height + GAP)
    if max(size) > LARGEST_EDGE:
        raise ConfigError(
            f"{OPTION} {repr_path(path)}: {len(pictures)} frames make a sheet of {size[0]} x"
            f" {size[1]} pixels, at most {LARGEST_EDGE} are possible; name a film, FILE.mp4, or use"
            " fewer frames"
        )
    picture = Image.new("RGB", size, "white")
    for n, each in enumerate(pictures):
        place = n % columns * (width + GAP), n // columns * (height + GAP)
        picture.paste(Image.fromarray(each), place)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
