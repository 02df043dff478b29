"""Fixtures: real clips in which every frame shows its number as four gray bars."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from elva_jax.video.reader import ONE_THREAD

BARS = 4
LEVELS = (40, 90, 140, 190)  # digits of base 4, for up to 256 frames
CLIPS = Path(__file__).parents[2] / "../shared/assets/videos"


def numbered(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame whose four vertical bars are the digits of `index`, most significant first."""
    digits = [index // len(LEVELS) ** power % len(LEVELS) for power in reversed(range(BARS))]
    columns = np.array(LEVELS, np.uint8)[np.array(digits)[np.arange(width) * BARS // width]]
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


def number(frame: np.ndarray) -> int:
    """Decodes the number of a frame of any size."""
    width = frame.shape[1]
    index = 0
    for bar in range(BARS):
        middle = frame[
            :, int((bar + 0.3) * width / BARS) : int((bar + 0.7) * width / BARS) + 1
        ].mean()
        index = index * len(LEVELS) + int(np.abs(np.array(LEVELS) - middle).argmin())
    return index


def encode(
    ticks,
    *,
    container="mp4",
    codec="libx264",
    rate=10,
    options=None,
    container_options=None,
    size=(48, 64),
    pixel_format="yuv420p",
    rotation=None,
    frames=None,
    audio_seconds=0.0,
) -> bytes:
    """Encodes numbered frames that are displayed at `ticks` / `rate` seconds."""
    buffer = io.BytesIO()
    with av.open(
        buffer, "w", format=container, container_options=container_options or {}
    ) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        if rotation is not None:
            degrees, mirrored = rotation
            stream.set_display_rotation(degrees, hflip=mirrored)
        sound = output.add_stream("aac", rate=16000) if audio_seconds else None
        if sound:
            mux_silence(output, sound, audio_seconds)
        for index, tick in enumerate(ticks):
            pixels = numbered(index, *size) if frames is None else frames[index]
            frame = av.VideoFrame.from_ndarray(
                pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24"
            )
            # With several threads, swscale sometimes corrupts the start of a row if the width is
            # not a multiple of its vector length.
            frame = VideoReformatter().reformat(frame, format=pixel_format, **ONE_THREAD)
            frame.pts, frame.time_base = int(tick), Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def mux_silence(output, stream, seconds: float) -> None:
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def displayed_at(ticks, num_frames: int, last: int = 1) -> list[int]:
    """The frames of uniform sampling by definition; the last frame lasts for `last` ticks."""
    duration = Fraction(int(ticks[-1]) + last - int(ticks[0]))
    chosen: list[int] = []
    for i in range(num_frames):
        time = int(ticks[0]) + (i + Fraction(1, 2)) * duration / num_frames
        index = max(k for k, tick in enumerate(ticks) if tick <= time)
        if index not in chosen:
            chosen.append(index)
    return chosen


@pytest.fixture(scope="session")
def clips():
    """Functions that write and read numbered clips."""

    class Clips:
        pass

    for function in (numbered, number, encode, mux_silence, displayed_at):
        setattr(Clips, function.__name__, staticmethod(function))
    return Clips


@pytest.fixture(scope="session")
def real_clips() -> list[Path]:
    if not CLIPS.is_dir():
        pytest.skip(f"no real clips in {CLIPS.name}")
    return sorted(path for path in CLIPS.iterdir() if path.suffix in (".mp4", ".mkv"))
