"""Frames of video and image files, with PyAV and Pillow, sampled uniformly in time."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".avif",
)


@dataclass(frozen=True)
class Picture:
    """A decoded frame, drawn at any size: the decoder converts colors and scales in one step."""

    height: int
    width: int
    at: Callable[[tuple[int, int]], np.ndarray]  # uint8 [h, w, 3] of a (height, width)

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3] in its own size."""
        return self.at((self.height, self.width))


def from_array(frame: np.ndarray) -> Picture:
    """The picture of an array, uint8 [H, W, 3]."""

    def at(size: tuple[int, int]) -> np.ndarray:
        if frame.shape[:2] == tuple(size):
            return frame
        return np.asarray(
            Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        )

    return Picture(*frame.shape[:2], at)


def sample_times(duration: Fraction, num_frames: int | None, fps: float | None) -> list[Fraction]:
    """Midpoints, in seconds, of n equal spans: n is `num_frames`, or fewer as `fps` says."""
    count = num_frames
    if fps:
        count = max(1, round(duration * Fraction(fps)))
        count = count if num_frames is None else min(count, num_frames)
    if not count or count < 1:
        raise ValueError("set num_frames or fps to choose the number of frames")
    return [duration * (2 * i + 1) / (2 * count) for i in range(count)]


def shown_at(starts: list, times: list) -> list[int]:
    """The frames shown at `times`, given their increasing start times, without repetition."""
    return list(dict.fromkeys(max(bisect.bisect_right(starts, time) - 1, 0) for time in times))


def read_image(source: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: upright by its EXIF orientation, transparency on white."""
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        from transformers.image_utils import load_image

        source = load_image(source)
    if isinstance(source, (str, Path)):
        with Image.open(source) as image:
            return _pixels(image)
    if isinstance(source, Image.Image):
        return _pixels(source)
    frame = np.asarray(source)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(
            "a frame must be a uint8 array [height, width, 3], got"
            f" {frame.dtype}{list(frame.shape)}"
        )
    return frame


def read_video(path: str | Path, num_frames: int | None, fps: float | None) -> list[Picture]:
    """Frames of a video, an animation, a still image or a folder of images (one per second).

    The frames are those shown at `sample_times`; a source with fewer frames gives fewer.

    Raises:
      ValueError: a source that cannot be read, or has fewer frames than it declares.
    """
    path = Path(path)
    if path.is_dir():
        files = [
            file
            for file in path.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
        files.sort(
            key=lambda file: [
                (int(part), "") if part.isdigit() else (-1, part)
                for part in re.split(r"(\d+)", file.name)
            ]
        )
        if not files:
            raise ValueError(f"{path}: a folder without images")
        chosen = shown_at(
            list(range(len(files))), sample_times(Fraction(len(files)), num_frames, fps)
        )
        return [from_array(read_image(files[k])) for k in chosen]
    try:
        with Image.open(path) as image:
            if not getattr(image, "is_animated", False) or image.format == "TIFF":
                return [from_array(_pixels(image))]
            return [from_array(frame) for frame in _animation(image, num_frames, fps)]
    except UnidentifiedImageError:
        return _video(path, num_frames, fps)


def _animation(image: Image.Image, num_frames: int | None, fps: float | None) -> list[np.ndarray]:
    """As in browsers, a delay under 20 ms counts as 100 ms."""
    ends = [Fraction(0)]
    for k in range(image.n_frames):
        image.seek(k)
        image.load()
        delay = Fraction(image.info.get("duration", 0)) / 1000
        ends.append(ends[-1] + (delay if delay >= Fraction(20, 1000) else Fraction(1, 10)))
    frames = []
    for k in shown_at(ends[:-1], sample_times(ends[-1], num_frames, fps)):
        image.seek(k)
        frames.append(_pixels(image))
    return frames


def _video(path: Path, num_frames: int | None, fps: float | None) -> list[Picture]:
    """Decodes from the start up to the last wanted frame."""
    import av

    try:
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise ValueError(f"{path}: has no video stream")
            stream.thread_type = "AUTO"
            end = _end(path, stream)
            frames = (frame for frame in container.decode(stream) if frame.pts is not None)
            held = next(frames, None)
            if held is None:
                raise ValueError(f"{path}: holds no frame that can be decoded")
            start, base = held.pts, stream.time_base
            wanted = [
                start + time // base
                for time in sample_times(max(end - start, 0) * base, num_frames, fps)
            ]
            pictures, done, ahead = [], None, next(frames, None)
            for time in wanted:
                while ahead is not None and ahead.pts <= time:
                    held, ahead = ahead, next(frames, None)
                if held.pts != done:
                    pictures.append(_picture(held))
                    done = held.pts
            return pictures
    except av.FFmpegError as error:
        raise ValueError(
            f"{path}: not a video or image that can be read, or broken ({error.strerror})"
        ) from error


def _end(path: Path, stream) -> int:
    """The time stamp at which the video ends: declared in the header, or after its last packet."""
    import av

    if stream.duration and stream.start_time is not None:
        return stream.start_time + stream.duration
    last = []
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        for packet in container.demux(container.streams[stream.index]):
            if packet.pts is not None:
                last = sorted({*last, (packet.pts, packet.duration or 0)})[-2:]
    if not last:
        raise ValueError(f"{path}: holds no frame that can be decoded")
    pts, duration = last[-1]
    return pts + (duration or pts - last[0][0])


def _picture(frame) -> Picture:
    """Turned upright where the file says so."""
    turns = round(frame.rotation / 90) % 4
    whole = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)

    def at(size: tuple[int, int]) -> np.ndarray:
        height, width = size[::-1] if turns % 2 else size
        scaling = (
            {}
            if tuple(size) == whole
            else dict(width=width, height=height, interpolation="BICUBIC")
        )
        return np.ascontiguousarray(
            np.rot90(frame.to_ndarray(format="rgb24", **scaling, **_one_thread()), turns)
        )

    return Picture(*whole, at)


def _one_thread() -> dict[str, int]:
    """Options for reproducible frames: several threads of FFmpeg may corrupt the start of a row."""
    import av

    return {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


def _pixels(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16-bit gray values
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image)
    return np.asarray(image.convert("RGB"))
