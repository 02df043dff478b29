"""Media as a data set stores them: their own bytes, or a smaller file of the same frames."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from elva_jax.data.example import Media
from elva_jax.errors import VideoError
from elva_jax.video.read import WHOLE, Pictures, excerpt, open_media
from elva_jax.video.reader import ONE_THREAD, VideoFile
from elva_jax.video.resize import LazyFrame

LARGEST = 2**30  # bytes of a medium; ArrayRecord and protocol buffers limit a record to 2 GiB
JPEG_START = b"\xff\xd8"
JPEG_QUALITY = 95
# One thread of x264 writes the same bytes on every machine. Without B-frames, times are stored
# unchanged. A key frame about every second keeps seeking short.
X264 = {
    "crf": "23",
    "preset": "veryfast",
    "bf": "0",
    "g": "32",
    "threads": "1",
    # Without this, its vector code gives 1 of 15 small clips other bytes.
    "x264-params": "cpu-independent=1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a medium."""

    height: int  # pixels, upright
    width: int
    frames: int  # 1 for an image
    seconds: float  # 0 for an image


def probe(medium: Media, name: str) -> Size:
    """The size of a medium, from packet headers and the first frame alone.

    Args:
      medium: as a reader returns it.
      name: name in error messages of a medium without a path.

    Raises:
      VideoError: it cannot be read, or is truncated.
    """
    with closing(_open(medium, name)) as opened:
        return _within(_size(opened, medium.kind), medium, name)


def pack(medium: Media, longest_edge: int, name: str) -> tuple[bytes, Size]:
    """The bytes to store for a medium, and the size of their frames.

    A medium within `longest_edge` is stored byte for byte, also one of which an excerpt is meant. A
    larger video becomes H.264 in mp4 with all frames at their times, without sound. A larger image
    stays JPEG, or becomes PNG. A folder or list of frames always becomes a video of one frame per
    second.

    Args:
      medium: as a reader returns it.
      longest_edge: pixels; 0: no limit.
      name: name in error messages of a medium without a path.

    Raises:
      VideoError: it cannot be read, is truncated, or is too large for a record.
    """
    with closing(_open(medium, name)) as opened:
        size = _size(opened, medium.kind)
        meant = _within(size, medium, name)
        folder = is_frames(medium)
        shrinks = 0 < longest_edge < max(size.height, size.width)
        if not folder and not shrinks:
            return _content(medium.source, name), meant
        height, width = _fit(size.height, size.width, longest_edge if shrinks else 0)
        if medium.kind == "video" and size.seconds:
            data, frames = _encode_video(opened, height, width, size)
        else:
            pixels = _first(opened, medium.kind).at((height, width))
            data, frames = _encode_image(pixels, _content(medium.source, name)[:2]), size.frames
    size = dataclasses.replace(size, height=height, width=width, frames=frames)
    return _content(data, name), _within(size, medium, name)


def paths_of(medium: Media) -> list[Path]:
    """The files or folders of a medium that is not bytes."""
    source = medium.source
    if isinstance(source, bytes):
        return []
    return [Path(file) for file in (source if isinstance(source, tuple) else (source,))]


def is_frames(medium: Media) -> bool:
    """Whether a medium is a folder or a list of frames."""
    source = medium.source
    return isinstance(source, tuple) or (isinstance(source, str) and Path(source).is_dir())


def _within(size: Size, medium: Media, name: str) -> Size:
    """The size of the excerpt that is meant; the record keeps the whole, and its bounds."""
    if medium.kind == "image" or medium.span == WHOLE:
        return size
    whole = Fraction(size.seconds)
    _, seconds = excerpt(whole, medium.span, name)
    frames = max(1, round(size.frames * seconds / whole))
    return dataclasses.replace(size, frames=frames, seconds=float(seconds))


def _open(medium: Media, name: str) -> VideoFile | Pictures:
    source = medium.source
    if isinstance(source, str):
        return open_media(Path(source), source)
    return open_media(source, name)


def _first(opened: VideoFile | Pictures, kind: str) -> LazyFrame:
    """The frame that stands for an image, or the first frame of a video."""
    time = opened.duration / 2 if kind == "image" else Fraction(0)
    ((_, picture),) = opened.frames_at([time])
    return picture


def _size(opened: VideoFile | Pictures, kind: str) -> Size:
    first = _first(opened, kind)
    frames, seconds = (1, 0.0) if kind == "image" else (opened.count(), float(opened.duration))
    return Size(height=first.height, width=first.width, frames=frames, seconds=seconds)


def _content(source: bytes | str | tuple[str, ...], name: str) -> bytes:
    """The bytes of a file."""
    if isinstance(source, tuple):
        raise VideoError(name, "is a list of frames, not one file")
    if isinstance(source, str):
        name, length = source, Path(source).stat().st_size
    else:
        length = len(source)
    if length > LARGEST:
        limit = f"has more than {LARGEST >> 20} MiB, the limit of a record"
        raise VideoError(name, f"{limit}; transcode it with a longest edge")
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _fit(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """The nearest size in proportion within `longest_edge` (0: no limit), with even edges.

    The chroma planes of H.264 have half the resolution, so edges must be even.
    """
    longest = max(height, width)
    limit = longest_edge or longest

    def edge(length: int) -> int:
        return max(2, min(round(length * limit / longest / 2), limit // 2) * 2)

    return edge(height), edge(width)


def _encode_image(pixels: np.ndarray, start: bytes) -> bytes:
    out = io.BytesIO()
    if start == JPEG_START:
        Image.fromarray(pixels).save(out, "JPEG", quality=JPEG_QUALITY)
    else:
        Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _encode_video(
    opened: VideoFile | Pictures, height: int, width: int, size: Size
) -> tuple[bytes, int]:
    """Encodes all frames at their times as H.264 in mp4; returns the file and their number."""
    out, base = io.BytesIO(), opened.time_base
    end = round(opened.duration / base)
    with av.open(out, "w", format="mp4") as output:
        rate = Fraction(size.frames / size.seconds).limit_denominator(1001)
        stream = output.add_stream("libx264", rate=max(rate, Fraction(1, 1001)), options=X264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = base
        last: Any = None
        count = 0
        for packet in _packets(stream, _frames(opened, (height, width), base, end)):
            if last is not None:
                output.mux(last)
            last, count = packet, count + 1
        # The muxer takes the duration of a frame from the next one, and the last one has none.
        last.duration = max(end - last.pts, 1)
        output.mux(last)
    return out.getvalue(), count


def _frames(
    opened: VideoFile | Pictures, size: tuple[int, int], base: Fraction, end: int
) -> Iterator[av.VideoFrame]:
    """Frames with increasing times before the declared end; the first of those at one time."""
    previous, reformatter = -1, VideoReformatter()
    for time, picture in opened.all_frames():
        frame = av.VideoFrame.from_ndarray(picture.at(size), format="rgb24")
        frame = reformatter.reformat(frame, format="yuv420p", **ONE_THREAD)
        pts = round(time / base)
        if previous < pts < end or previous < 0:
            frame.pts, frame.time_base, previous = pts, base, pts
            yield frame


def _packets(stream: av.VideoStream, frames: Iterable[av.VideoFrame]) -> Iterator[av.Packet]:
    for frame in frames:
        yield from stream.encode(frame)
    yield from stream.encode(None)
