"""One video file opened with PyAV: its duration, and the frames displayed at given times, without decoding more than needed."""

from __future__ import annotations

import collections
import contextlib
import io
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from elva_jax.errors import VideoError
from elva_jax.video.resize import LazyFrame, Size, resize_frame

# Without a list FFmpeg would also "play" text files and follow play lists to other files.
FORMATS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,flv,mpeg,mpegts,asf,ogg,ivf,wav,flac,mp3"
UNKNOWN_KEYFRAME_GAP = 10  # seconds between key frames, until two of them have been seen
ONE_THREAD = (
    {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
)  # of the colour conversion; one by itself before PyAV 17
BACKGROUND = 255  # what shines through transparent pixels: white, as on a page


Scalers = dict[
    Size, VideoReformatter
]  # one for each size drawn: each is set up once, not for every frame


class Shown(NamedTuple):
    """A decoded frame and its time stamp in units of the stream's time base."""

    pts: int
    frame: av.VideoFrame


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns whatever a decoding library raises into a VideoError about `name`."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:  # Pillow and PyAV raise nearly every type on damaged files
        reason = (
            (error.strerror if isinstance(error, OSError) else str(error))
            or str(error)
            or type(error).__name__
        )
        raise VideoError(name, f"cannot be read ({reason.strip()})") from error


class VideoFile:
    """A video, as times from its first displayed frame.

    Its duration is the length that the stream's header declares, or else the end of its last packet.

    Decoding is strictly forward, except that a long way to the next wanted time is cut short by seeking to a key frame. One thread
    decodes: small clips open faster so, and workers that decode side by side do not fight for cores.

    Args:
      source: a path, or the file's bytes.
      name: what errors call it.

    Raises:
      VideoError: no video stream, or not one frame that can be decoded.
    """

    def __init__(self, source: Path | bytes, name: str):
        self.name = name
        self._source = source
        self._container = None
        self._frames: Generator[Shown] = _nothing()
        self._held: Shown | None = None  # the frame on display
        self._ahead: Shown | None = None  # the one behind it
        self._scalers: Scalers = collections.defaultdict(VideoReformatter)
        self._matrix: np.ndarray | None = None  # how frames are turned and mirrored
        self._keyframe_gap: int | None = None
        self._can_seek = True  # until the file turns out to be unfit for it
        self._cut_short = False
        try:
            with reading(name):
                self._open_stream()
                if not self._declared:
                    self._measure()
                self._stand_on(self._decode(skip_errors=True))
                self._start = self._held.pts
                if self._declared:
                    self._end = self._stream.start_time + self._declared
                self.duration = max(self._end - self._start, 0) * self._base
        except VideoError:
            self.close()
            raise

    def close(self) -> None:
        # What still reads from the container, and the frames that it holds, go first.
        self._frames.close()
        self._held = self._ahead = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def frames_at(self, times: Iterable[Fraction]) -> Iterator[tuple[Fraction, LazyFrame]]:
        """Yields time in seconds and picture of the frames displayed at increasing `times`, each frame once.

        The frame displayed at t is the last one whose time stamp is not after t.

        Raises:
          VideoError: a wanted frame is missing or cannot be decoded.
        """
        done = None
        for time in times:
            wanted = self._start + time // self._base
            with reading(self.name):
                self._go_to(wanted)
                if self._held.pts == done:
                    continue
                done = self._held.pts
                picture = self._picture()
            yield (done - self._start) * self._base, picture

    @property
    def time_base(self) -> Fraction:
        """Seconds of which every frame's time is a multiple."""
        return self._base

    def all_frames(self) -> Iterator[tuple[Fraction, LazyFrame]]:
        """Yields time in seconds and picture of every frame from where the file stands: all of a newly opened one.

        Raises:
          VideoError: the file ends early, or a frame cannot be decoded.
        """
        while True:
            with reading(self.name):
                picture = self._picture()
            yield (self._held.pts - self._start) * self._base, picture
            if self._ahead is None:
                break
            with reading(self.name):
                self._held, self._ahead = self._ahead, next(self._frames, None)
        if not self._complete():
            raise self._truncated()

    def count(self) -> int:
        """How many frames there are, from the packets, of which none is decoded.

        Raises:
          VideoError: the file ends early, or a packet is incomplete.
        """
        frames, begin, end = 0, float("inf"), 0
        with reading(self.name), self._open() as container:
            for packet in container.demux(container.streams[self._stream.index]):
                if packet.is_corrupt:
                    raise VideoError(self.name, "truncated or damaged (an incomplete packet)")
                frames += packet.size > 0
                if packet.size and packet.dts is not None:
                    begin, end = (
                        min(begin, packet.dts),
                        max(end, packet.dts + (packet.duration or 0)),
                    )
        if self._cut_short or (
            self._declared and end > begin and not self._reaches(end - begin, self._declared)
        ):
            raise VideoError(
                self.name, f"truncated (its packets end before {float(self.duration):.2f} s)"
            )
        return max(frames, 1)

    def _picture(self) -> LazyFrame:
        """The held frame's."""
        if (
            self._matrix is None
        ):  # asked for once: a frame whose side data was looked at stays, with its buffers, in a reference cycle
            self._matrix = display_matrix(self._held.frame)
        return to_picture(self._held.frame, self._matrix, self._scalers, self.name)

    def _open(self) -> av.container.InputContainer:
        file = (
            io.BytesIO(self._source) if isinstance(self._source, bytes) else f"file:{self._source}"
        )
        try:
            return av.open(
                file, container_options={"format_whitelist": FORMATS}, metadata_errors="ignore"
            )
        except av.FFmpegError as error:
            raise VideoError(
                self.name, f"not a video or image that can be read, or broken ({error.strerror})"
            ) from error

    def _open_stream(self) -> None:
        """Opens the file, again perhaps, and chooses its video stream."""
        self.close()
        self._container = self._open()
        stream = self._container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = sorted({s.type for s in self._container.streams} - {"video"})
            raise VideoError(
                self.name,
                f"has no video stream (only {', '.join(kinds)})"
                if kinds
                else "has no video stream",
            )
        if stream.codec_context is None:
            raise VideoError(self.name, "is encoded in a way that this FFmpeg has no decoder for")
        stream.thread_count = 1
        # The length in the header; without a start it is only FFmpeg's guess. Of a cut AVI FFmpeg reports what is left, but all frames.
        self._declared = stream.duration if stream.start_time is not None else None
        if self._declared and self._container.format.name == "avi":
            self._declared = max(self._declared, stream.frames)
        self._stream = stream
        self._base = Fraction(stream.time_base.numerator, stream.time_base.denominator)
        self._problem = ""
        self._read_from = self._read_to = None

    def _stand_on(self, frames: Generator[Shown], first: Shown | None = None) -> None:
        self._frames.close()
        self._frames = frames
        self._held = first or next(frames, None)
        if self._held is None:
            raise VideoError(
                self.name,
                f"holds no frame that can be decoded{self._problem and f' ({self._problem})'}",
            )
        self._ahead = next(frames, None)

    def _go_to(self, wanted: int) -> None:
        """Stands on the frame displayed at time stamp `wanted`."""
        if self._ahead is not None and self._can_seek and wanted - self._ahead.pts > self._gap():
            self._seek(wanted)
        while self._ahead is not None and self._ahead.pts <= wanted:
            self._held, self._ahead = self._ahead, next(self._frames, None)
        if self._ahead is None and wanted > self._held.pts and not self._complete():
            raise self._truncated()

    def _truncated(self) -> VideoError:
        seconds = float((self._held.pts - self._start) * self._base)
        reason = self._problem or "the file ends"
        return VideoError(
            self.name,
            f"truncated or damaged after {seconds:.2f} of {float(self.duration):.2f} s ({reason})",
        )

    def _gap(self) -> int:
        """Time stamps between key frames, as far as known: a longer way is worth a seek."""
        return (
            int(UNKNOWN_KEYFRAME_GAP / self._base)
            if self._keyframe_gap is None
            else self._keyframe_gap
        )

    def _interval(self) -> int:
        rate = self._stream.average_rate or self._stream.base_rate
        return round(1 / (rate * self._base)) if rate else 0

    def _complete(self) -> bool:
        """Whether reading stopped where the video ends, and not before."""
        if self._problem or self._cut_short:
            return False
        if not self._declared or self._read_from is None:
            return True
        return self._reaches(self._read_to - self._read_from, self._declared)

    def _reaches(self, length: int, declared: int) -> bool:
        """Whether a length is about the declared one; muxers differ by a frame or so."""
        return length >= 0.98 * declared - self._interval()

    def _seek(self, wanted: int) -> None:
        """Stands on a key frame at or before `wanted`; the first frame if there is no other way."""
        before, back = self._held.pts, 0
        while wanted - back > self._start:
            try:
                self._container.seek(wanted - back, stream=self._stream)
            except av.FFmpegError:
                break
            self._problem = ""
            frames = self._decode()
            # Frames displayed before the key frame may refer to frames that were not read.
            first = next(
                (shown for shown in frames if shown.frame.key_frame or shown.pts > wanted), None
            )
            if first is not None and first.frame.key_frame and first.pts <= wanted:
                self._stand_on(frames, first)
                if first.pts <= before:
                    self._keyframe_gap = max(self._gap(), wanted - first.pts)
                return
            back = max(2 * back, int(1 / self._base))
        self._can_seek = False
        self._open_stream()
        self._stand_on(self._decode(skip_errors=True))

    def _decode(self, skip_errors: bool = False) -> Generator[Shown]:
        """Yields frames in display order from where the container stands; notes in `_problem` why it had to stop early."""
        # AVI stores no display times: the k-th frame shown takes the k-th packet's, which holds only from the beginning of the file on.
        unnumbered = self._container.format.name == "avi"
        self._can_seek = self._can_seek and not unnumbered
        decode_times: collections.deque[int] = collections.deque()
        last = key = None
        for packet in self._packets():
            if packet.dts is None and not packet.size and not self._complete():
                return  # the decoder's last frames would be shown in place of the missing ones
            key = self._note(packet, key)
            if packet.dts is not None and packet.size:
                decode_times.append(packet.dts)
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if not skip_errors or last is not None:
                    self._problem = error.strerror
                    return
                decode_times.clear()
                continue
            for frame in frames:
                pts = decode_times.popleft() if unnumbered and decode_times else frame.pts
                if pts is None:
                    self._can_seek = False
                    pts = 0 if last is None else last + self._interval()
                last = pts if last is None else max(pts, last)
                yield Shown(last, frame)

    def _packets(self) -> Iterator[av.Packet]:
        """The stream's packets up to the first incomplete one, then one without data that asks the decoder for its last frames."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self._problem = "an incomplete packet"
                    return
                yield packet
        except av.FFmpegError as error:
            self._problem = error.strerror

    def _note(self, packet: av.Packet, key: int | None) -> int | None:
        """Keeps the range of decode times read and the widest gap between key frames; returns the last key frame's decode time."""
        if packet.dts is None:
            return key
        if self._read_from is None:
            self._read_from = packet.dts
        self._read_to = packet.dts + (packet.duration or 0)
        if not packet.is_keyframe:
            return key
        if key is not None:
            self._keyframe_gap = max(self._keyframe_gap or 0, packet.dts - key)
        return packet.dts

    def _measure(self) -> None:
        """Finds the end of a video whose header does not tell it, and whether the file reaches the length that it declares as a whole."""
        start, declared = self._container.start_time or 0, self._container.duration or 0
        self._end, end_of_all = (
            self._find_end(near_end=True) or self._find_end(near_end=False) or (0, 0)
        )
        length = int((end_of_all - Fraction(start, av.time_base)) / self._base)
        declared = int(Fraction(declared - max(start, 0), av.time_base) / self._base)
        self._cut_short = not self._reaches(length, declared)
        if length < declared - self._interval():
            self._end += declared - length

    def _find_end(self, near_end: bool) -> tuple[int, Fraction] | None:
        """The time stamp at which the video's packets end and the second at which all streams' end; None if no packet of it was seen."""
        with self._open() as container:
            video = container.streams[self._stream.index]
            if near_end and container.duration:
                try:
                    container.seek((container.start_time or 0) + container.duration)
                except av.FFmpegError:
                    return None
            last: list[tuple[int, int]] = []  # the two latest (time stamp, duration) of the video
            end_of_all = Fraction(0)
            for packet in container.demux():
                if packet.pts is None:
                    continue
                end_of_all = max(
                    end_of_all, (packet.pts + (packet.duration or 0)) * packet.time_base
                )
                if packet.stream.index == video.index:
                    last = sorted({*last, (packet.pts, packet.duration or 0)})[-2:]
        if not last:
            return None
        pts, duration = last[-1]
        end = pts + (duration or pts - last[0][0])
        return end, max(end * self._base, end_of_all)


def _nothing() -> Generator[Shown]:
    yield from ()


def to_picture(frame: av.VideoFrame, matrix: np.ndarray, scalers: Scalers, name: str) -> LazyFrame:
    """A frame as it is meant to be seen: transparency on white, turned and mirrored by the display matrix."""
    turned = is_turned(matrix)
    whole = (frame.width, frame.height) if turned else (frame.height, frame.width)

    def draw(size: Size) -> np.ndarray:
        with reading(name):
            if any(component.is_alpha for component in frame.format.components):
                return resize_frame(displayed(_blended(frame, scalers[whole]), matrix), size)
            height, width = reversed(size) if turned else size
            scaling = (
                {} if size == whole else dict(width=width, height=height, interpolation="BICUBIC")
            )
            pixels = (
                scalers[size].reformat(frame, format="rgb24", **scaling, **ONE_THREAD).to_ndarray()
            )
            return np.ascontiguousarray(displayed(pixels, matrix))

    return LazyFrame(*whole, draw)


def _blended(frame: av.VideoFrame, scaler: VideoReformatter) -> np.ndarray:
    """uint8 [H, W, 3] of a frame with transparent pixels, on white."""
    rgba = scaler.reformat(frame, format="rgba", **ONE_THREAD).to_ndarray().astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """FFmpeg's 3x3 display matrix of a frame, row by row; the unit matrix where it has none."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except (
        ValueError,
        IndexError,
    ):  # PyAV before 19 fails on side data newer than itself; the rotation alone is still to be had
        angle = np.deg2rad(frame.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.round([cos, -sin, 0, sin, cos, 0, 0, 0, 1]).astype(int)
    return np.eye(3, dtype=int).ravel() if matrix is None else np.frombuffer(bytes(matrix), "<i4")


def is_turned(matrix: np.ndarray) -> bool:
    """Whether a display matrix exchanges height and width."""
    a, b, _, c, d = (abs(int(value)) for value in matrix[:5])
    return b + c > a + d


def displayed(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turns and mirrors an [H, W, 3] image by FFmpeg's 3x3 display matrix (a point (x, y) goes to (a x + c y, b x + d y)).

    Angles between right ones are rounded to the nearest.
    """
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if is_turned(matrix):
        pixels, right, down = pixels.transpose(1, 0, 2), c, b
    else:
        right, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
