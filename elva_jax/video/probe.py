"""Reads the length, number of frames and damage of a video file without decoding it.

Times in a file are integer numbers of ticks, the time base of the video stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from elva_jax.errors import VideoError
from elva_jax.video import matroska

# Without this list FFmpeg would also render text files as video and open files of playlists.
FORMATS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,flv,mpeg,mpegts,asf,ogg,ivf,wav,flac,mp3"

MOST_PIXELS = 178_956_970  # of one picture, where Pillow refuses too; more would fill the memory
MOST_STRETCH = 16  # sample aspect ratios beyond are damage


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Converts any exception of a decoding library to a VideoError about `name`."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:  # Pillow and PyAV raise many exception types on damaged files
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reason = reason or str(error) or type(error).__name__
        raise VideoError(name, f"cannot be read ({reason.strip()})") from error


def open_container(source: Path | bytes, name: str) -> av.container.InputContainer:
    """Opens a path or the bytes of a file with PyAV.

    Raises:
      VideoError: the file is broken or in none of `FORMATS`.
    """
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        return av.open(file, "r", container_options=options, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise VideoError(
            name, f"not a video or image that can be read, or broken ({error.strerror})"
        ) from error


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The best video stream, configured for decoding in one thread.

    Raises:
      VideoError: no video stream can be decoded, or its frames have too many pixels.
    """
    stream = container.streams.best("video")
    if (
        not isinstance(stream, av.VideoStream)
        or stream.disposition & av.stream.Disposition.attached_pic
    ):
        kinds = ", ".join(sorted({s.type for s in container.streams} - {"video"}))
        raise VideoError(name, f"has no video stream{kinds and f' (only {kinds})'}")
    if stream.codec_context is None:
        raise VideoError(name, "uses a codec for which this FFmpeg has no decoder")
    check_size(stream.width, stream.height, name)
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    stream.thread_count = 1
    return stream


def check_size(width: int, height: int, name: str) -> None:
    """Refuses a picture that would fill the memory.

    Raises:
      VideoError: it has more than `MOST_PIXELS` pixels.
    """
    if width * height > MOST_PIXELS:
        raise VideoError(
            name, f"claims {width}x{height} pixels, more than {MOST_PIXELS}; scale it down first"
        )


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a pixel by its height, as displayed; 1 if the file does not say or is damaged."""
    ratio = stream.sample_aspect_ratio
    aspect = Fraction(ratio) if ratio else Fraction(1)
    return aspect if Fraction(1, MOST_STRETCH) <= aspect <= MOST_STRETCH else Fraction(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """The length of a video by its header, or by its last packet if the header lacks it.

    Attributes:
      tick: seconds per tick.
      end: tick at which the video ends.
      declared: length in ticks by the stream's header; None: absent, or only FFmpeg's guess.
      frame: typical length of a frame in ticks; 0: unknown.
      cut_short: whether the packets end before the declared length of the whole file.
    """

    tick: Fraction
    end: int
    declared: int | None
    frame: int
    cut_short: bool

    def reached_by(self, ticks: int) -> bool:
        """Whether `ticks` reach approximately the declared length, or none is declared."""
        return not self.declared or _nearly_reaches(ticks, self.declared, self.frame)


def _nearly_reaches(ticks: int, declared: int, frame: int) -> bool:
    """Whether a length is approximately the declared one; muxers differ by about one frame."""
    return ticks >= 0.98 * declared - frame


def probe(
    source: Path | bytes, name: str, container: av.container.InputContainer, stream: av.VideoStream
) -> Length:
    """Determines the length of an opened video.

    Raises:
      VideoError: the file is broken.
    """
    assert stream.time_base is not None
    tick = Fraction(stream.time_base.numerator, stream.time_base.denominator)
    rate = stream.average_rate or stream.base_rate
    frame = round(1 / (rate * tick)) if rate else 0
    # Without a start time the duration is only FFmpeg's guess.
    if stream.start_time is None or not stream.duration:
        end, cut_short = _measure(source, name, container, stream, tick, frame)
        return Length(tick=tick, end=end, declared=None, frame=frame, cut_short=cut_short)
    declared = stream.duration
    if container.format.name == "avi":
        # For a truncated AVI, FFmpeg reports the duration of the remaining part, but the number of
        # frames of the complete file.
        declared = max(declared, stream.frames)
    end = stream.start_time + declared
    return Length(tick=tick, end=end, declared=declared, frame=frame, cut_short=False)


def _measure(
    source: Path | bytes,
    name: str,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    tick: Fraction,
    frame: int,
) -> tuple[int, bool]:
    """The end tick of a video without a declared length, and whether the file is cut short."""
    start, duration = container.start_time or 0, container.duration or 0
    end, end_of_all = (
        _find_end(source, name, stream.index, near_end=True)
        or _find_end(source, name, stream.index, near_end=False)
        or (0, Fraction(0))
    )
    length = int((end_of_all - Fraction(start, av.time_base)) / tick)
    declared = int(Fraction(duration - max(start, 0), av.time_base) / tick)
    truncated = container.format.name.startswith("matroska") and matroska.is_truncated(source)
    # Muxers declare about one frame more or less. A truncated file misses what it declares.
    if length < declared - (0 if truncated else frame):
        end += declared - length
    return end, truncated or not _nearly_reaches(length, declared, frame)


def _find_end(
    source: Path | bytes, name: str, index: int, *, near_end: bool
) -> tuple[int, Fraction] | None:
    """The end of the packets of stream `index` in ticks, and that of all streams in seconds.

    With `near_end`, only packets near the end of the file are read. Returns None if none of them
    belongs to the stream.
    """
    last: list[tuple[int, int]] = []  # the two latest (time stamp, duration) of the stream
    tick, end_of_all = Fraction(0), Fraction(0)
    with open_container(source, name) as container:
        if near_end and container.duration:
            try:
                container.seek((container.start_time or 0) + container.duration)
            except av.FFmpegError:
                return None
        for packet in container.demux():
            if packet.pts is None:
                continue
            duration = packet.duration or 0
            end_of_all = max(end_of_all, (packet.pts + duration) * packet.time_base)
            if packet.stream.index == index:
                last, tick = sorted({*last, (packet.pts, duration)})[-2:], packet.time_base
    if not last:
        return None
    pts, duration = last[-1]
    end = pts + (duration or pts - last[0][0])
    return end, max(end * tick, end_of_all)


class PacketReader:
    """Reads the packets of a video stream, and records problems and the distance of key frames.

    Attributes:
      problem: why reading stopped early; "": it did not stop early.
      keyframe_gap: largest distance of two consecutive key frames so far, in ticks; None: fewer
        than two key frames were read.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, length: Length
    ):
        self._container, self._stream, self._length = container, stream, length
        self._first = self._stop = (
            0  # decode time of the first packet read, and the end of the last one
        )
        self._any = False
        self.problem = ""
        self.keyframe_gap: int | None = None

    def packets(self) -> Iterator[av.Packet]:
        """Yields the packets up to the first incomplete one, then an empty packet as a flush.

        The flush is omitted if the video ends early, because the frames still in the decoder would
        then take the place of missing ones.
        """
        key = None
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self.problem = "an incomplete packet"
                    return
                if packet.dts is not None:
                    key = self._note(packet, packet.dts, key)
                elif not packet.size and not self.is_complete():
                    return
                yield packet
        except av.FFmpegError as error:
            self.problem = error.strerror or str(error)

    def _note(self, packet: av.Packet, time: int, key: int | None) -> int | None:
        """Records a packet; returns the decode time of the last key frame, `key` before it."""
        if not self._any:
            self._first, self._any = time, True
        self._stop = time + (packet.duration or 0)
        if not packet.is_keyframe:
            return key
        if key is not None:
            self.keyframe_gap = max(self.keyframe_gap or 0, time - key)
        return time

    def is_complete(self) -> bool:
        """Whether reading reached the end of the video."""
        if self.problem or self._length.cut_short:
            return False
        return not self._any or self._length.reached_by(self._stop - self._first)


def frame_ticks(
    source: Path | bytes, name: str, length: Length, *, stream_index: int, duration: Fraction
) -> list[int]:
    """The ticks at which the frames of a video are displayed, by its packets, in their order.

    Raises:
      VideoError: the file ends early, or a packet is incomplete.
    """
    ticks: list[int] = []
    starts, stops = [], [0]
    with reading(name), open_container(source, name) as container:
        unnumbered = container.format.name == "avi"  # it has no display times
        for packet in container.demux(container.streams[stream_index]):
            if packet.is_corrupt:
                raise VideoError(name, "truncated or damaged (an incomplete packet)")
            if packet.size > 0 and not packet.is_discard:  # before or after an edit
                tick = packet.dts if unnumbered or packet.pts is None else packet.pts
                after_last = ticks[-1] + length.frame if ticks else 0
                ticks.append(after_last if tick is None else tick)
            if packet.size and packet.dts is not None:
                starts.append(packet.dts)
                stops.append(packet.dts + (packet.duration or 0))
    span = max(stops) - min(starts) if starts else 0
    if length.cut_short or (span > 0 and not length.reached_by(span)):
        raise VideoError(name, f"truncated (its packets end before {float(duration):.2f} s)")
    return ticks
