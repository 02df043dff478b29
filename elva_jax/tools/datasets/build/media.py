"""A medium as a data set keeps it: its file's own bytes, or a smaller file of the same pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from elva_jax.data.example import Media
from elva_jax.errors import VideoError
from elva_jax.video.picture import Picture
from elva_jax.video.read import Pictures, open_media
from elva_jax.video.reader import ONE_THREAD, VideoFile

LARGEST = 2**30  # bytes of a medium; a record of ArrayRecord and protocol buffers ends at 2 GiB
JPEG_START = b"\xff\xd8"
JPEG_QUALITY = 95
# x264 on one thread: the same bytes on every machine. Without B-frames times are stored as they are; a key frame a second or so
# keeps the way to a sampled frame short.
X264 = {"crf": "23", "preset": "veryfast", "bf": "0", "g": "32", "threads": "1"}


class Size(NamedTuple):
    """How large a medium is."""

    height: int  # pixels, upright
    width: int
    frames: int  # 1 of an image
    seconds: float  # 0 of an image


def probe(medium: Media, name: str) -> Size:
    """The size of a medium from its packets' headers and its first frame alone.

    Args:
      medium: as a reader gives it.
      name: what errors call a medium that has no path.

    Raises:
      VideoError: it cannot be read, or is truncated.
    """
    with closing(_opened(medium, name)) as opened:
        return _size(opened, medium.kind)


def pack(medium: Media, longest_edge: int, name: str) -> tuple[bytes, Size]:
    """The bytes to keep of a medium, and the size of what they show.

    A medium within `longest_edge` stays as it is, byte for byte. A larger video becomes H.264 in mp4 with all its frames at their times,
    without sound; a larger image stays JPEG, or becomes PNG. A folder of frames becomes a video of a frame a second whatever its size.

    Args:
      medium: as a reader gives it.
      longest_edge: pixels; 0: any size stays.
      name: what errors call a medium that has no path.

    Raises:
      VideoError: it cannot be read, is truncated, or is too large to be kept.
    """
    with closing(_opened(medium, name)) as opened:
        size = _size(opened, medium.kind)
        folder = isinstance(medium.source, str) and Path(medium.source).is_dir()
        shrinks = 0 < longest_edge < max(size.height, size.width)
        if not folder and not shrinks:
            return _content(medium.source, name), size
        height, width = _fit(size.height, size.width, longest_edge if shrinks else 0)
        if medium.kind == "video" and size.seconds:
            data, frames = _encode_video(opened, height, width, size)
            size = size._replace(frames=frames)
        else:
            data = _encode_image(
                _first(opened, medium.kind).at((height, width)), _content(medium.source, name)[:2]
            )
    return _content(data, name), size._replace(height=height, width=width)


def _opened(medium: Media, name: str) -> VideoFile | Pictures:
    source = medium.source
    return open_media(
        source if isinstance(source, bytes) else Path(source),
        name if isinstance(source, bytes) else source,
    )


def _first(opened: VideoFile | Pictures, kind: str) -> Picture:
    """The frame that an image's sample shows, or a video's first one."""
    time = opened.duration / 2 if kind == "image" else Fraction(0)
    ((_, picture),) = opened.frames_at([time])
    return picture


def _size(opened: VideoFile | Pictures, kind: str) -> Size:
    first = _first(opened, kind)
    height, width = first.height, first.width
    return (
        Size(height, width, 1, 0.0)
        if kind == "image"
        else Size(height, width, opened.count(), float(opened.duration))
    )


def _content(source: bytes | str, name: str) -> bytes:
    """A file's bytes."""
    if isinstance(source, str):
        name, length = source, Path(source).stat().st_size
    else:
        length = len(source)
    if length > LARGEST:
        raise VideoError(
            name,
            f"has more than {LARGEST >> 20} MiB, the limit of a record; transcode it with a longest edge",
        )
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _fit(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """The nearest even edges, as H.264's chroma wants them, in proportion and within `longest_edge` (0: as large as they are)."""
    limit, longest = longest_edge or max(height, width), max(height, width)
    return tuple(
        max(2, min(round(edge * limit / longest / 2), limit // 2) * 2) for edge in (height, width)
    )


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
    """All frames at their times, H.264 in mp4, and how many they are."""
    out, base = io.BytesIO(), opened.time_base
    end = round(opened.duration / base)
    with av.open(out, "w", format="mp4") as output:
        rate = Fraction(size.frames / size.seconds).limit_denominator(1001)
        stream = output.add_stream("libx264", rate=max(rate, Fraction(1, 1001)), options=X264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = base
        last, count = None, 0
        for packet in _packets(stream, _frames(opened, (height, width), base, end)):
            if last is not None:
                output.mux(last)
            last, count = packet, count + 1
        last.duration = max(
            end - last.pts, 1
        )  # the muxer knows from the next frame how long one is shown, but of the last one
        output.mux(last)
    return out.getvalue(), count


def _frames(
    opened: VideoFile | Pictures, size: tuple[int, int], base: Fraction, end: int
) -> Iterator[av.VideoFrame]:
    previous, reformatter = -1, VideoReformatter()
    for time, picture in opened.all_frames():
        frame = av.VideoFrame.from_ndarray(picture.at(size), format="rgb24")
        frame = reformatter.reformat(frame, format="yuv420p", **ONE_THREAD)
        pts = round(time / base)
        if (
            previous < pts < end or previous < 0
        ):  # of frames at one time the first; none behind the end that the file declares
            frame.pts, frame.time_base, previous = pts, base, pts
            yield frame


def _packets(stream: av.VideoStream, frames: Iterable[av.VideoFrame]) -> Iterator[av.Packet]:
    for frame in frames:
        yield from stream.encode(frame)
    yield from stream.encode(None)
