"""Reads frames of one video file at given times with PyAV, decoding as little as possible."""

from __future__ import annotations

import collections
import math
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from elva_jax.errors import VideoError
from elva_jax.video.notes import note_video
from elva_jax.video.probe import (
    PacketReader,
    frame_ticks,
    open_container,
    pixel_aspect,
    probe,
    reading,
    video_stream,
)
from elva_jax.video.resize import LazyFrame, Size, resize_frame

UNKNOWN_KEYFRAME_GAP = 10  # assumed seconds between key frames until two of them have been read
# Pixels decoded to sample a video: five hours of 1920x1080 at 30 frames per second. Only dense
# sampling, or a file with hardly any key frames, decodes that much.
MOST_DECODED = 2**40
BACKGROUND = 255  # gray level onto which transparent pixels are composited: white
# Threads of the color conversion; PyAV before 17 always uses one.
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

Scalers = dict[Size, VideoReformatter]  # by target size; each is initialized once, not per frame


class Shown(NamedTuple):
    """A decoded frame with its time stamp in ticks of the stream."""

    pts: int
    frame: av.VideoFrame


class VideoFile:
    """A video; times are relative to its first displayed frame.

    The duration is that of the stream's header, or the end of the last packet.

    Frames are decoded in order; if the next requested time is far away, decoding continues from a
    key frame near it. Decoding uses one thread: small clips open faster, and parallel workers do
    not compete for cores.

    Args:
      source: a path, or the bytes of a file.
      name: name of the source in errors.

    Attributes:
      duration: duration in seconds.
      time_base: seconds per tick; the time of every frame is a multiple.

    Raises:
      VideoError: the file has no video stream, or none of its frames can be decoded.
    """

    _held: Any = None  # the current frame: a Shown while the file is open
    _next: Shown | None = None  # the next frame
    _left: float  # pixels that may still be decoded

    def __init__(self, source: Path | bytes, name: str):
        self.name = name
        self._source = source
        self._frames: Generator[Shown] = _no_frames()
        self._container: Any = None  # an InputContainer while the file is open
        self._scalers: Scalers = collections.defaultdict(VideoReformatter)
        self._matrix: np.ndarray | None = None  # how frames are rotated and mirrored
        self._can_seek = True  # set to False if seeking fails
        self._left = MOST_DECODED
        try:
            with reading(name):
                self._container = open_container(source, name)
                self._stream = video_stream(self._container, name)
                self._aspect = pixel_aspect(self._stream)
                self._length = probe(source, name, self._container, self._stream)
                self._packets = PacketReader(self._container, self._stream, self._length)
                self._set_frames(self._decode(skip_errors=True))
        except VideoError:
            self.close()
            raise
        note_video(self._held.frame, self._container, name)
        self._start: int = self._held.pts
        self.time_base = self._length.tick
        self.duration = max(self._length.end - self._start, 0) * self.time_base

    def close(self) -> None:
        """Closes the file."""
        # The generator uses the container, and the frames hold its buffers: release them first.
        self._frames.close()
        self._held = self._next = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def frames_at(self, times: Iterable[Fraction]) -> Iterator[tuple[Fraction, LazyFrame]]:
        """Yields (seconds, frame) for the frames displayed at increasing `times`, each frame once.

        The frame displayed at t is the last one whose time stamp is at or before t.

        Raises:
          VideoError: a requested frame is missing or cannot be decoded, or more than
            `MOST_DECODED` pixels would be decoded.
        """
        done = None
        for time in times:
            wanted = self._start + time // self.time_base
            with reading(self.name):
                self._advance_to(wanted)
                if self._held.pts == done:
                    continue
                done = self._held.pts
                frame = self._lazy_frame()
            yield (done - self._start) * self.time_base, frame

    def all_frames(self) -> Iterator[tuple[Fraction, LazyFrame]]:
        """Yields (seconds, frame) from the current frame on; for a newly opened file, all frames.

        Raises:
          VideoError: the file ends early, or a frame cannot be decoded.
        """
        self._left = math.inf
        while True:
            with reading(self.name):
                frame = self._lazy_frame()
            yield (self._held.pts - self._start) * self.time_base, frame
            if self._next is None:
                break
            with reading(self.name):
                self._held, self._next = self._next, next(self._frames, None)
        if not self._packets.is_complete():
            raise self._truncated()

    def count(self) -> int:
        """Counts the frames by their packets, without decoding.

        Raises:
          VideoError: the file ends early, or a packet is incomplete.
        """
        return max(len(self._ticks()), 1)

    def starts(self) -> list[Fraction]:
        """When each frame is displayed, in increasing seconds from the first; nothing is decoded.

        Raises:
          VideoError: the file ends early, or a packet is incomplete.
        """
        shown = {self._start, *(tick for tick in self._ticks() if tick > self._start)}
        return [(tick - self._start) * self.time_base for tick in sorted(shown)]

    def _ticks(self) -> list[int]:
        return frame_ticks(
            self._source,
            self.name,
            self._length,
            stream_index=self._stream.index,
            duration=self.duration,
        )

    def _lazy_frame(self) -> LazyFrame:
        """The current frame."""
        if self._matrix is None:
            # Read once, because reading a frame's side data puts the frame and its buffers into a
            # reference cycle.
            self._matrix = display_matrix(self._held.frame)
        return to_lazy_frame(self._held.frame, self._matrix, self._scalers, self.name, self._aspect)

    def _set_frames(self, frames: Generator[Shown], first: Shown | None = None) -> None:
        """Replaces the source of frames; its first one, or `first`, becomes the current frame."""
        self._frames.close()
        self._frames = frames
        held = first or next(frames, None)
        if held is None:
            problem = self._packets.problem
            raise VideoError(
                self.name, f"holds no frame that can be decoded{problem and f' ({problem})'}"
            )
        self._held, self._next = held, next(frames, None)

    def _advance_to(self, wanted: int) -> None:
        """Makes the frame that is displayed at tick `wanted` the current one."""
        if self._next is not None and self._can_seek and wanted - self._next.pts > self._gap():
            self._seek(wanted)
        while self._next is not None and self._next.pts <= wanted:
            self._held, self._next = self._next, next(self._frames, None)
        if self._next is None and wanted > self._held.pts and not self._packets.is_complete():
            raise self._truncated()

    def _truncated(self) -> VideoError:
        seconds = float((self._held.pts - self._start) * self.time_base)
        reason = self._packets.problem or "the file ends"
        return VideoError(
            self.name,
            f"truncated or damaged after {seconds:.2f} of {float(self.duration):.2f} s ({reason})",
        )

    def _too_much(self, frame: av.VideoFrame) -> VideoError:
        return VideoError(
            self.name,
            f"takes more than {MOST_DECODED / 1e9:.0f} billion decoded pixels (frames of"
            f" {frame.width}x{frame.height}, key frames {float(self._gap() * self._length.tick):g}"
            " s apart or more); sample fewer frames, or convert it with more key frames or smaller",
        )

    def _gap(self) -> int:
        """Known or assumed ticks between key frames; seeking pays off over longer distances."""
        gap = self._packets.keyframe_gap
        return int(UNKNOWN_KEYFRAME_GAP / self._length.tick) if gap is None else gap

    def _seek(self, wanted: int) -> None:
        """Moves to a key frame at or before `wanted`, or to the first frame if seeking fails."""
        before, back = self._held.pts, 0
        while wanted - back > self._start:
            try:
                self._container.seek(wanted - back, stream=self._stream)
            except av.FFmpegError:
                break
            self._packets.problem = ""
            frames = self._decode()
            # Frames displayed before the key frame may depend on frames that were not read.
            first = next(
                (shown for shown in frames if shown.frame.key_frame or shown.pts > wanted), None
            )
            if first is not None and first.frame.key_frame and first.pts <= wanted:
                self._set_frames(frames, first)
                if first.pts <= before:
                    self._packets.keyframe_gap = max(self._gap(), wanted - first.pts)
                return
            back = max(2 * back, int(1 / self._length.tick))
        self._can_seek = False
        self.close()
        self._container = open_container(self._source, self.name)
        self._stream = video_stream(self._container, self.name)
        self._packets = PacketReader(self._container, self._stream, self._length)
        self._set_frames(self._decode(skip_errors=True))

    def _decode(self, *, skip_errors: bool = False) -> Generator[Shown]:
        """Yields frames in display order from the container's current position on.

        Args:
          skip_errors: whether packets before the first frame may fail to decode.
        """
        # AVI stores no display times: frame k in display order has the time of packet k, which is
        # only valid when decoding starts at the beginning of the file.
        unnumbered = self._container.format.name == "avi"
        self._can_seek = self._can_seek and not unnumbered
        decode_times: collections.deque[int] = collections.deque()
        last = None
        for packet in self._packets.packets():
            if packet.dts is not None and packet.size:
                decode_times.append(packet.dts)
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if not skip_errors or last is not None:
                    self._packets.problem = error.strerror or str(error)
                    return
                decode_times.clear()
                continue
            for frame in frames:
                self._left -= frame.width * frame.height
                if self._left < 0:
                    raise self._too_much(frame)
                pts = decode_times.popleft() if unnumbered and decode_times else frame.pts
                if pts is None:
                    self._can_seek = False
                    pts = 0 if last is None else last + self._length.frame
                last = pts if last is None else max(pts, last)
                yield Shown(last, frame)


def _no_frames() -> Generator[Shown]:
    yield from ()


def to_lazy_frame(
    frame: av.VideoFrame,
    matrix: np.ndarray,
    scalers: Scalers,
    name: str,
    aspect: Fraction = Fraction(1),
) -> LazyFrame:
    """Rotates a frame by its display matrix and composites transparent pixels on white.

    The frame is as wide or as high as displayed: pixels that are not square, of the ratio `aspect`,
    are stretched, never shrunk.
    """
    sideways = swaps_axes(matrix)
    stored = (frame.width, frame.height) if sideways else (frame.height, frame.width)
    shown = displayed_size(frame.height, frame.width, aspect)
    whole = shown[::-1] if sideways else shown

    def draw(size: Size) -> np.ndarray:
        with reading(name):
            if any(component.is_alpha for component in frame.format.components):
                return resize_frame(upright(_on_white(frame, scalers[stored]), matrix), size)
            height, width = (size[1], size[0]) if sideways else size
            options = dict(ONE_THREAD, format="rgb24")
            if size != stored:
                options |= dict(width=width, height=height, interpolation="BICUBIC")
            pixels = scalers[size].reformat(frame, **options).to_ndarray()
            return np.ascontiguousarray(upright(pixels, matrix))

    return LazyFrame(*whole, draw)


def displayed_size(height: int, width: int, aspect: Fraction) -> Size:
    """(height, width) with square pixels; `aspect` is the width of a pixel by its height."""
    if aspect >= 1:
        return height, max(1, round(width * aspect))
    return max(1, round(height / aspect)), width


def _on_white(frame: av.VideoFrame, scaler: VideoReformatter) -> np.ndarray:
    """Composites a frame with transparent pixels on white; uint8 [H, W, 3]."""
    rgba = scaler.reformat(frame, format="rgba", **ONE_THREAD).to_ndarray().astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """FFmpeg's 3x3 display matrix of a frame, in row-major order; the identity if it has none."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except (ValueError, IndexError):
        # PyAV before 19 fails on unknown types of side data; the rotation is still available.
        angle = np.deg2rad(frame.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.round([cos, -sin, 0, sin, cos, 0, 0, 0, 1]).astype(int)
    return np.eye(3, dtype=int).ravel() if matrix is None else np.frombuffer(bytes(matrix), "<i4")


def swaps_axes(matrix: np.ndarray) -> bool:
    """Whether a display matrix swaps height and width."""
    a, b, _, c, d = (abs(int(value)) for value in matrix[:5])
    return b + c > a + d


def upright(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rotates and mirrors an [H, W, 3] image by FFmpeg's 3x3 display matrix.

    The matrix maps a point (x, y) to (a x + c y, b x + d y); its angle is rounded to a multiple of
    90 degrees.
    """
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if swaps_axes(matrix):
        pixels, right, down = pixels.transpose(1, 0, 2), c, b
    else:
        right, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
