"""Frames of video and image files, with PyAV and Pillow, sampled uniformly in time."""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".avif"),
)
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
# Without this list FFmpeg would also open files and addresses that a playlist names.
VIDEO_FORMATS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,flv,mpeg,mpegts,asf,ogg,ivf,wav,flac,mp3"
OPENED = {
    "container_options": {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"},
    "metadata_errors": "ignore",
}
MOST_PIXELS = 178_956_970  # of one picture, where Pillow refuses too; more would fill the memory
MOST_DRAWN = 2**32  # pixels of all frames of an animation, each of which is drawn
MOST_DECODED = 2**40  # pixels to read a video: five hours of 1920x1080 at 30 frames per second
MOST_STRETCH = 16  # sample aspect ratios beyond are damage
HDR = {16: "PQ", 18: "HLG"}  # transfer functions, ITU-T H.273
SRGB = ((0.6485, 0.3309), (0.3212, 0.5979), (0.1559, 0.0660))  # x, y relative to D50


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


Span = tuple[float, float | None]  # seconds from the first frame
WHOLE: Span = (0.0, None)


def sample_times(
    duration: Fraction, num_frames: int | None, fps: float | None, span: Span = WHOLE
) -> list[Fraction]:
    """Midpoints, in seconds, of n equal parts of a span: n is `num_frames`, or fewer by `fps`."""
    start, end = Fraction(span[0]), duration
    if span != WHOLE:
        end = duration if span[1] is None else min(Fraction(span[1]), duration)
        if start >= end:
            raise ValueError(
                f"lasts {float(duration):g} s; the excerpt begins at {float(start):g} s"
            )
        duration = end - start
    count = num_frames
    if fps:
        count = max(1, round(duration * Fraction(fps)))
        count = count if num_frames is None else min(count, num_frames)
    if not count or count < 1:
        raise ValueError("set num_frames or fps to choose the number of frames")
    return [start + duration * (2 * i + 1) / (2 * count) for i in range(count)]


def shown_at(starts: list, times: list) -> list[int]:
    """The frames shown at `times`, given their increasing start times, without repetition."""
    return list(dict.fromkeys(max(bisect.bisect_right(starts, time) - 1, 0) for time in times))


def read_image(source: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: upright by its EXIF orientation, transparency on white."""
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        from transformers.image_utils import load_image

        source = load_image(source)
    if isinstance(source, (str, Path)):
        _check_file(Path(source))
        with _reading(source), Image.open(source, formats=IMAGE_FORMATS) as image:
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


def read_video(
    source: str | Path | tuple[str, ...],
    num_frames: int | None,
    fps: float | None,
    span: Span = WHOLE,
) -> list[Picture]:
    """Frames of a video, animation, still image, folder or list of images (one per second).

    The frames are those shown at `sample_times`; a source with fewer frames gives fewer.

    Raises:
      ValueError: a source that cannot be read, ends before the span begins, or has fewer frames
        than it declares.
    """
    if isinstance(source, tuple) or Path(source).is_dir():
        files = list(map(Path, source)) if isinstance(source, tuple) else _in(Path(source))
        times = sample_times(Fraction(len(files)), num_frames, fps, span)
        return [from_array(read_image(files[k])) for k in shown_at(list(range(len(files))), times)]
    path = Path(source)
    _check_file(path)
    with _reading(path):
        try:
            image = Image.open(path, formats=IMAGE_FORMATS)
        except UnidentifiedImageError:
            return _video(path, num_frames, fps, span)
        with image:
            _check_size(*image.size)
            # The second picture in a phone's JPEG (MPO) or a TIFF is no frame of an animation.
            if not getattr(image, "is_animated", False) or image.format in ("TIFF", "MPO"):
                sample_times(Fraction(0), 1, None, span)  # an excerpt has no frames
                return [from_array(_pixels(image))]
            frames = _animation(_with_alpha(image, path), num_frames, fps, span)
            return [from_array(frame) for frame in frames]


def _in(folder: Path) -> list[Path]:
    """The images of a folder, in natural order of their names."""
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise ValueError(f"{folder}: a folder without images")
    return sorted(
        files,
        key=lambda file: [
            (int(part), "") if part.isdecimal() else (-1, part)
            for part in re.split(r"(\d+)", file.name)
        ],
    )


@contextlib.contextmanager
def _reading(path: str | Path):
    """Makes any exception of a decoding library a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # Pillow and PyAV raise many types on damaged files
        if isinstance(error, FileNotFoundError) or str(path) in str(error):
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason})") from error


def _check_file(path: Path) -> None:
    """Refuses what is not a regular file: a pipe would block, and a device might never end."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path}: is not a regular file")


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"claims {width}x{height} pixels, more than {MOST_PIXELS}")


def _with_alpha(image: Image.Image, path: Path) -> Image.Image:
    """An animated WebP with the transparency of its frames, where its header does not claim it."""
    if image.format != "WEBP" or image.mode != "RGB":
        return image
    content = bytearray(path.read_bytes())
    if content[12:16] != b"VP8X":
        return image
    content[20] |= 0x10  # the flag of transparency
    return Image.open(io.BytesIO(content), formats=("WEBP",))


def _animation(
    image: Image.Image, num_frames: int | None, fps: float | None, span: Span
) -> list[np.ndarray]:
    """As in browsers, a delay under 20 ms counts as 100 ms."""
    if image.n_frames * image.width * image.height > MOST_DRAWN:
        size = f"{image.n_frames} frames of {image.width}x{image.height} pixels"
        raise ValueError(f"has {size}, more than {MOST_DRAWN / 1e9:.1f} billion; make it smaller")
    ends = [Fraction(0)]
    for k in range(image.n_frames):
        image.seek(k)
        image.load()
        delay = Fraction(image.info.get("duration", 0)) / 1000
        ends.append(ends[-1] + (delay if delay >= Fraction(20, 1000) else Fraction(1, 10)))
    frames = []
    for k in shown_at(ends[:-1], sample_times(ends[-1], num_frames, fps, span)):
        image.seek(k)
        frames.append(_pixels(image))
    return frames


def _video(path: Path, num_frames: int | None, fps: float | None, span: Span) -> list[Picture]:
    """Decodes from the start up to the last wanted frame."""
    import av

    try:
        with av.open(f"file:{path}", **OPENED) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise ValueError(f"{path}: has no video stream")
            if stream.codec_context is None:
                raise ValueError(f"{path}: uses a codec for which this FFmpeg has no decoder")
            _check_size(stream.width, stream.height)
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            stream.thread_type = "AUTO"
            end = _end(path, stream)
            frames = _decoded(container, stream, path)
            held = next(frames, None)
            if held is None:
                raise ValueError(f"{path}: holds no frame that can be decoded")
            _note(held, container, path)
            start, base = held.pts, stream.time_base
            aspect, matrix = _pixel_aspect(stream), _display_matrix(held)
            wanted = [
                start + time // base
                for time in sample_times(max(end - start, 0) * base, num_frames, fps, span)
            ]
            pictures, done, ahead = [], None, next(frames, None)
            for time in wanted:
                while ahead is not None and ahead.pts <= time:
                    held, ahead = ahead, next(frames, None)
                if held.pts != done:
                    pictures.append(_picture(held, matrix, aspect))
                    done = held.pts
            return pictures
    except av.FFmpegError as error:
        raise ValueError(
            f"{path}: not a video or image that can be read, or broken ({error.strerror})"
        ) from error


def _decoded(container, stream, path: Path) -> Iterator:
    """The frames from the start on, until their pixels are more than `MOST_DECODED`."""
    left = MOST_DECODED
    for frame in container.decode(stream):
        left -= frame.width * frame.height
        if left < 0:
            raise ValueError(
                f"{path}: takes more than {MOST_DECODED / 1e9:.0f} billion decoded pixels (frames"
                f" of {frame.width}x{frame.height}, all from the start); cut the video, or make it"
                " smaller"
            )
        if frame.pts is not None:
            yield frame


def _note(frame, container, path: Path) -> None:
    """Says what a video is read without."""
    import av

    notes = []
    if kind := HDR.get(int(frame.color_trc)):
        notes.append(f"{kind} video (high dynamic range) is read without tone mapping")
    if frame.interlaced_frame:
        notes.append("interlaced video is read without deinterlacing")
    pictures = av.stream.Disposition.attached_pic
    count = sum(not stream.disposition & pictures for stream in container.streams.video)
    if count > 1:
        notes.append(f"has {count} video streams; the one that players choose is read")
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=3)


def _end(path: Path, stream) -> int:
    """The time stamp at which the video ends: declared in the header, or after its last packet."""
    import av

    if stream.duration and stream.start_time is not None:
        return stream.start_time + stream.duration
    last = []
    with av.open(f"file:{path}", **OPENED) as container:
        for packet in container.demux(container.streams[stream.index]):
            if packet.pts is not None:
                last = sorted({*last, (packet.pts, packet.duration or 0)})[-2:]
    if not last:
        raise ValueError(f"{path}: holds no frame that can be decoded")
    pts, duration = last[-1]
    return pts + (duration or pts - last[0][0])


def _picture(frame, matrix: np.ndarray, aspect: Fraction) -> Picture:
    """As displayed: turned, mirrored and with square pixels; transparency on white."""
    turned = _swaps_axes(matrix)
    stored = (frame.width, frame.height) if turned else (frame.height, frame.width)
    height, width = frame.height, frame.width
    if aspect >= 1:
        width = max(1, round(width * aspect))
    else:
        height = max(1, round(height / aspect))
    whole = (width, height) if turned else (height, width)

    def at(size: tuple[int, int]) -> np.ndarray:
        if any(component.is_alpha for component in frame.format.components):
            rgba = frame.to_ndarray(format="rgba", **_one_thread()).astype(np.uint16)
            alpha = rgba[..., 3:]
            white = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
            return from_array(np.ascontiguousarray(_upright(white, matrix))).at(size)
        height, width = size[::-1] if turned else size
        scaling = (
            {}
            if tuple(size) == stored
            else dict(width=width, height=height, interpolation="BICUBIC")
        )
        pixels = frame.to_ndarray(format="rgb24", **scaling, **_one_thread())
        return np.ascontiguousarray(_upright(pixels, matrix))

    return Picture(*whole, at)


def _pixel_aspect(stream) -> Fraction:
    """Width of a pixel by its height; 1 if the file does not say or is damaged."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return aspect if Fraction(1, MOST_STRETCH) <= aspect <= MOST_STRETCH else Fraction(1)


def _display_matrix(frame) -> np.ndarray:
    """The first two rows of FFmpeg's 3x3 display matrix, which rotates and mirrors."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except (ValueError, IndexError):  # PyAV before 19 fails on unknown types of side data
        angle = np.deg2rad(frame.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.round([cos, -sin, 0, sin, cos, 0]).astype(int)
    if matrix is None:
        return np.asarray([1, 0, 0, 0, 1, 0])
    return np.frombuffer(bytes(matrix), "<i4")


def _swaps_axes(matrix: np.ndarray) -> bool:
    a, b, _, c, d = (abs(int(value)) for value in matrix[:5])
    return b + c > a + d


def _upright(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    a, b, _, c, d = (int(value) for value in matrix[:5])
    right, down = (c, b) if _swaps_axes(matrix) else (a, d)
    if _swaps_axes(matrix):
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _one_thread() -> dict[str, int]:
    """Options for reproducible frames: several threads of FFmpeg may corrupt the start of a row."""
    import av

    return {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@functools.lru_cache(maxsize=256)
def _foreign_profile(profile: bytes) -> str | None:
    """The name of a color profile other than sRGB and gray."""
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        space, title = found.xcolor_space.strip(), found.profile_description
        primaries = (found.red_primary, found.green_primary, found.blue_primary)
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):  # damaged
        return None
    near = all(
        primary is None or np.allclose(primary[1][:2], own, atol=0.01)
        for primary, own in zip(primaries, SRGB, strict=True)
    )
    return None if space == "GRAY" or (space == "RGB" and near) else (title or space)[:60]


def _pixels(image: Image.Image) -> np.ndarray:
    _check_size(*image.size)
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and (kind := _foreign_profile(profile)):
        warnings.warn(f"a color profile ({kind}) is not applied: read as sRGB", stacklevel=3)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            "an image has 32 bits per pixel, and no range that says what is white; save it with 8"
            " or 16 bits"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16-bit gray values
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image)
    return np.asarray(image.convert("RGB"))
