"""Samples frames of a video file, animation, folder of images or still image uniformly in time.

Frames are decoded only as far as needed, and only the sampled ones are kept in memory.
"""

from __future__ import annotations

import bisect
import dataclasses
import io
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from elva_jax.errors import ConfigError, VideoError
from elva_jax.utils import numbers
from elva_jax.video.notes import note_profile
from elva_jax.video.probe import check_size, reading
from elva_jax.video.reader import BACKGROUND, VideoFile
from elva_jax.video.resize import LazyFrame

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
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
# Pixels of all frames of an animation: each is drawn to know its delay, and again up to the last
# sampled one, 0.1 to 0.2 billion per second.
MOST_DRAWN = 2**32
Span = tuple[float, float | None]  # seconds from the first frame
WHOLE: Span = (0.0, None)
HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"msf1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Sampled frames in temporal order.

    Attributes:
      pixels: T arrays, uint8 [H, W, 3] RGB, or the results of the transform.
      times: float64 [T], seconds since the first frame of the source.
      duration: seconds; 0 for a still image.
    """

    pixels: list[Any]
    times: np.ndarray
    duration: float


def read_frames(
    source: str | Path | bytes | tuple[str, ...],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    transform: Callable[[LazyFrame], Any] | None = None,
    name: str | None = None,
    folder_fps: float = 1.0,
    span: Span = WHOLE,
) -> Frames:
    """Samples frames of a video or image uniformly in time.

    The n frames are exactly those displayed at the times (i + 0.5) * duration / n. The frame
    displayed at t is the last one that starts at or before t. No frame is returned twice, so a
    source with fewer frames returns fewer. A still image is one frame.

    Args:
      source: path of a video (mp4, mkv, avi, webm, ...), an animated or still image, or a folder of
        images in natural order of their names; the bytes of a file; or the paths of images.
      num_frames: n, or its maximum if `fps` is given.
      fps: frames per second over the duration, at least one in all; None or 0: `num_frames` only.
      transform: applied to each frame as soon as it is decoded, such as
        `lambda frame: frame.at((224, 224))`; None: the original pixels are returned.
      name: name of the source in errors; by default its path.
      folder_fps: frames per second of a folder or list of images.
      span: the seconds, from the first frame on, between which frames are sampled, as if the rest
        had been cut off; an end of None, or after that of the source, is the end of the source.

    Raises:
      VideoError: the source is missing, empty, broken, truncated before a sampled frame, without
        images, or ends before the span begins.
      ConfigError: neither `num_frames` nor `fps` is positive.

    Example:
      >>> import tempfile
      >>> import elva_jax
      >>> from elva_jax import testing
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = testing.write_video(f"{folder}/clip.mp4", testing.tiny_video(8))
      ...     video = elva_jax.read_video(path, num_frames=4)
      >>> len(video.pixels), video.pixels[0].shape
      (4, (32, 32, 3))
    """
    if num_frames is not None:
        numbers.FRAMES.check("num_frames", num_frames)
    numbers.RATE.check("fps", fps or 0)
    numbers.POSITIVE.check("folder_fps", folder_fps)
    if not num_frames and not fps:
        raise ConfigError("set num_frames or fps to choose the number of frames")
    if isinstance(source, str):
        source = Path(source)
    if name is None:
        name = name_of(source)
    pixels, times = [], []
    with closing(open_media(source, name, folder_fps)) as media:
        start, duration = excerpt(media.duration, span, name)
        moments = (start + time for time in sample_times(duration, num_frames, fps))
        for time, frame in media.frames_at(moments):
            pixels.append(frame.pixels() if transform is None else transform(frame))
            times.append(float(time))
    return Frames(pixels=pixels, times=np.asarray(times, np.float64), duration=float(duration))


def name_of(source: Path | bytes | tuple[str, ...]) -> str:
    """The name of a source in errors."""
    if isinstance(source, bytes):
        return "<bytes>"
    return str(source) if isinstance(source, Path) else str(next(iter(source), "<no frames>"))


def excerpt(duration: Fraction, span: Span, name: str) -> tuple[Fraction, Fraction]:
    """Start and length, in seconds, of a span of a medium.

    Raises:
      VideoError: the medium ends before the span begins.
    """
    if span == WHOLE:
        return Fraction(0), duration
    start = Fraction(span[0])
    end = duration if span[1] is None else min(Fraction(span[1]), duration)
    if start >= end:
        raise VideoError(
            name, f"lasts {float(duration):g} s; the excerpt begins at {float(start):g} s"
        )
    return start, end - start


def sample_times(duration: Fraction, num_frames: int | None, fps: float | None) -> list[Fraction]:
    """The exact sampling times of `read_frames` in seconds, (i + 0.5) * duration / n."""
    count = num_frames or 1
    if fps:
        rate = max(1, round(duration * Fraction(fps)))
        count = rate if num_frames is None else min(rate, num_frames)
        if count > numbers.MOST_FRAMES:
            raise ConfigError(
                f"fps={fps}: {count} frames of {float(duration):g} s; set num_frames, at most"
                f" {numbers.MOST_FRAMES}"
            )
    return [duration * (2 * i + 1) / (2 * count) for i in range(count)]


class Pictures:
    """Images with known times: a still image, an animation or a folder.

    Args:
      starts: increasing start times of the images in seconds.
      duration: total duration in seconds.
      load: returns image k as uint8 [H, W, 3]; called with increasing k.
      close: called at the end.

    Attributes:
      time_base: unit in seconds; all delays of animations and frames of folders are multiples.
    """

    time_base = Fraction(1, 1000)

    def __init__(
        self,
        starts: list[Fraction],
        duration: Fraction,
        load: Callable[[int], np.ndarray],
        close: Callable[[], None],
    ):
        self.duration = duration
        self._starts = starts
        self._load = load
        self.close = close

    def frames_at(self, times: Iterable[Fraction]) -> Iterator[tuple[Fraction, LazyFrame]]:
        """See `VideoFile.frames_at`."""
        for k in dict.fromkeys(bisect.bisect_right(self._starts, time) - 1 for time in times):
            yield self._starts[k], LazyFrame.from_array(self._load(k))

    def all_frames(self) -> Iterator[tuple[Fraction, LazyFrame]]:
        """See `VideoFile.all_frames`."""
        return (
            (start, LazyFrame.from_array(self._load(k))) for k, start in enumerate(self._starts)
        )

    def count(self) -> int:
        """Number of images."""
        return len(self._starts)

    def starts(self) -> list[Fraction]:
        """See `VideoFile.starts`."""
        return self._starts


def open_media(
    source: Path | bytes | tuple[str, ...], name: str, folder_fps: float = 1.0
) -> VideoFile | Pictures:
    """Opens a source of `read_frames`; the caller must close it.

    Raises:
      VideoError: see `read_frames`.
    """
    if isinstance(source, tuple):
        return _files([Path(file) for file in source], Fraction(folder_fps))
    if isinstance(source, Path) and source.is_dir():
        return _folder(source, name, Fraction(folder_fps))
    head = _read_head(source, name)
    # FFmpeg would decode a single tile of a HEIF image as a video.
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        raise VideoError(name, "HEIF images are not supported; convert it to JPEG or PNG")
    with reading(name):
        try:
            image = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=IMAGE_FORMATS
            )
        except Image.UnidentifiedImageError:
            return VideoFile(source, name)
        check_size(*image.size, name)
        # The second picture in a phone's JPEG (MPO) or a TIFF is no frame of an animation.
        if getattr(image, "is_animated", False) and image.format not in ("TIFF", "MPO"):
            return _animation(_with_alpha(image, source), name)
    return Pictures([Fraction(0)], Fraction(0), lambda k: _pixels(image, name), image.close)


def _read_head(source: Path | bytes, name: str) -> bytes:
    """Reads the first bytes of a source.

    Raises:
      VideoError: the source is empty, or not a file.
    """
    if isinstance(source, bytes):
        head = source[:16]
    else:
        try:
            # A pipe would block, and a device might never end.
            if not stat.S_ISREG(source.stat().st_mode):
                raise VideoError(name, "is neither a file nor a folder")
            with source.open("rb") as file:
                head = file.read(16)
        except FileNotFoundError:
            raise VideoError(name, "no such file or folder") from None
        except OSError as error:
            raise VideoError(name, f"cannot be opened ({error.strerror})") from error
    if not head:
        raise VideoError(name, "is empty (0 bytes)")
    return head


def _folder(folder: Path, name: str, fps: Fraction) -> Pictures:
    def natural_order(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    files = sorted((p for p in names if p.suffix.lower() in IMAGE_SUFFIXES), key=natural_order)
    if not files:
        raise VideoError(name, f"is a folder without images ({', '.join(IMAGE_SUFFIXES)})")
    return _files(files, fps)


def _files(files: list[Path], fps: Fraction) -> Pictures:
    if not files:
        raise VideoError("<no frames>", "is a list without images")

    def load(k: int) -> np.ndarray:
        _read_head(files[k], str(files[k]))
        with reading(str(files[k])), Image.open(files[k], formats=IMAGE_FORMATS) as image:
            return _pixels(image, str(files[k]))

    return Pictures([k / fps for k in range(len(files))], len(files) / fps, load, lambda: None)


def _with_alpha(image: Image.Image, source: Path | bytes) -> Image.Image:
    """An animated WebP with the transparency of its frames, where its header does not claim it.

    Pillow would read transparent pixels, and those that no frame covers, as black.
    """
    if image.format != "WEBP" or image.mode != "RGB":
        return image
    content = bytearray(source if isinstance(source, bytes) else source.read_bytes())
    if content[12:16] != b"VP8X":
        return image
    content[20] |= 0x10  # the flag of transparency
    image.close()
    return Image.open(io.BytesIO(content), formats=("WEBP",))


def _animation(image: Image.Image, name: str) -> Pictures:
    """Opens an animated image; as in browsers, delays under 20 ms are replaced by 100 ms.

    Raises:
      VideoError: it is broken, or its frames have more than `MOST_DRAWN` pixels.
    """
    ends, count = [Fraction(0)], getattr(image, "n_frames", 1)
    if count * image.width * image.height > MOST_DRAWN:
        raise VideoError(
            name,
            f"has {count} frames of {image.width}x{image.height} pixels, all of which must be"
            f" drawn; the limit is {MOST_DRAWN / 1e9:.1f} billion pixels: convert it to a video,"
            " or make it smaller",
        )
    for k in range(count):
        image.seek(k)
        image.load()
        delay = Fraction(image.info.get("duration", 0)) / 1000
        ends.append(ends[-1] + (delay if delay >= Fraction(20, 1000) else Fraction(1, 10)))

    def load(k: int) -> np.ndarray:
        with reading(name):
            image.seek(k)
            return _pixels(image, name)

    return Pictures(ends[:-1], ends[-1], load, image.close)


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """The current frame as uint8 [H, W, 3], rotated by its EXIF data and composited on white."""
    with reading(name):
        check_size(*image.size, name)
        note_profile(image, name)
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise VideoError(
                name,
                "has 32 bits per pixel, and no range that says what is white;"
                " save it with 8 or 16 bits",
            )
        if image.mode.startswith("I;16"):
            # Pillow's own conversion clips 16-bit gray instead of scaling it.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (BACKGROUND,) * 4), image)
        return np.asarray(image.convert("RGB"))
