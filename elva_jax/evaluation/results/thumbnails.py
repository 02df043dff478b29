"""Small frames of a sample of media, as data URLs of bounded size."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from elva_jax.data.example import Media
from elva_jax.data.readers import paths
from elva_jax.errors import VideoError
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit
from elva_jax.video.read import read_frames
from elva_jax.video.resize import LazyFrame

FRAMES, EDGE, QUALITY = 4, 176, 60  # per medium; pixels of the longest edge; of WebP
MOST_BYTES = 64 * 2**20  # of all data URLs
SECONDS = 60.0  # to read one medium
READERS = 4  # threads
OUTSIDE = "no frames: not below --data-root, the folder of media that may be shown"


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """Frames of a medium.

    Attributes:
      urls: of the frames in order; () where there are none.
      note: why there are none; "": they were not asked for, or there are some.
    """

    urls: tuple[str, ...] = ()
    note: str = ""


def choose(media: Sequence[Sequence[Media]], most: int) -> list[Media]:
    """A sample of the media of several benchmarks, spread evenly over each.

    Args:
      media: the media of each benchmark, each once.
      most: number of media in the sample; smaller benchmarks leave their share to larger ones.
    """
    chosen: dict[Media, None] = {}
    rest = sorted(media, key=len)
    for number, of_benchmark in enumerate(rest):
        share = (most - len(chosen)) // (len(rest) - number)
        count = min(share, len(of_benchmark))
        positions = [(2 * k + 1) * len(of_benchmark) // (2 * count) for k in range(count)]
        chosen |= dict.fromkeys(of_benchmark[position] for position in positions)
    return list(chosen)


def read(
    media: Iterable[Media], folders: Sequence[Path] | None = None
) -> Mapping[Media, Thumbnails]:
    """The frames of each medium, until they are `MOST_BYTES` together.

    Args:
      media: each is read.
      folders: only media below one of them are read; None: all.
    """
    found: dict[Media, Thumbnails] = {}
    size = 0
    read_one = functools.partial(_read, folders=folders)
    with ThreadPoolExecutor(READERS) as pool:
        media = list(media)
        for start in range(0, len(media), 8 * READERS):
            if size > MOST_BYTES:
                break
            part = media[start : start + 8 * READERS]
            for medium, frames in zip(part, pool.map(read_one, part), strict=True):
                size += sum(map(len, frames.urls))
                if size <= MOST_BYTES:
                    found[medium] = frames
    return found


def _read(medium: Media, folders: Sequence[Path] | None) -> Thumbnails:
    source = medium.source
    if isinstance(source, str) and source.startswith("sha256:"):
        return Thumbnails(note="the image was part of the annotation file, not of the results")
    if folders is not None and not _is_below(source, folders):
        return Thumbnails(note=OUTSIDE)
    try:
        frames = run_with_time_limit(
            SECONDS,
            lambda: read_frames(source, num_frames=FRAMES, span=medium.span, transform=_shrink),
        )
    except (VideoError, TimeLimitExceeded) as error:
        reason = error.reason if isinstance(error, VideoError) else str(error)
        return Thumbnails(note=f"no frames: {reason}")
    return Thumbnails(urls=tuple(map(_url, frames.pixels)))


def _is_below(source: str | bytes | tuple[str, ...], folders: Sequence[Path]) -> bool:
    """Whether files lie below folders, after all links; bytes came with the results."""
    if isinstance(source, bytes):
        return True
    allowed = [place for folder in folders for place in paths.places(folder)]
    try:
        files = [source] if isinstance(source, str) else source
        return all(paths.lies_below(file, allowed) for file in files)
    except (OSError, RuntimeError, ValueError):
        return False


def _shrink(frame: LazyFrame) -> np.ndarray:
    scale = min(1.0, EDGE / max(frame.height, frame.width))
    return frame.at((max(1, round(frame.height * scale)), max(1, round(frame.width * scale))))


def _url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
