"""Converts images and videos to the input of ELVA: patches, and the patch grid of every frame."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .decoding_elva import Picture, from_array, read_image, read_video

# Fields of a media part that say which part of a video is meant, and those that are not followed.
STARTS = ("start", "video_start", "start_time", "start_sec", "clip_start")
ENDS = ("end", "video_end", "end_time", "end_sec", "clip_end")
COUNTS = ("nframes", "num_frames")
REFUSED = (
    *("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"),
    *("resized_height", "resized_width", "start_frame", "end_frame", "crop", "bbox"),
)
CLOCK = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{1,2}(?:\.[0-9]{1,9})?)")
LONGEST, MOST_FRAMES = 1e7, 1_000_000  # seconds and frames
GRAY_SIDE = 32  # side in pixels of the gray thumbnails that are compared


class ElvaImagesKwargs(ImagesKwargs, total=False):
    """Options of `ElvaImageProcessor`."""

    patch_size: int
    longest_edge: int
    upscale: bool
    num_frames: int
    fps: float
    num_low_frames: int
    low_longest_edge: int
    hybrid_policy: str


def excerpt_of(part: dict[str, Any]) -> dict[str, Any]:
    """A media part of a message whose medium is an excerpt, if it has fields that ask for one.

    An excerpt is a dict of `source` (a file, a folder of images or a tuple of images), `start` and
    `end` (seconds; None: the end of the video) and `frames` (how many to sample; None: as many as
    the processor says). It is sampled as if the rest of the video were cut off.

    Raises:
      ValueError: a field that is not followed, or a value that cannot be.
    """
    for name in REFUSED:
        if part.get(name) is not None:
            raise ValueError(
                f"a part of a message asks for {name} = {str(part[name])[:40]}, which is not"
                " followed; remove it, and give num_frames, fps or longest_edge to the processor"
            )
    start, end = _seconds(_one(part, STARTS)), _seconds(_one(part, ENDS))
    count = _one(part, COUNTS)
    key = next((key for key in (part["type"], "url", "path") if key in part), None)
    listed = key and isinstance(part[key], (list, tuple)) and part[key]
    files = listed and all(isinstance(file, str) for file in part[key])
    if start is None and end is None and count is None and not files:
        return part
    if key is None or part["type"] != "video" or not (files or isinstance(part[key], (str, Path))):
        raise ValueError("bounds and numbers of frames are of the file of a video")
    if count is not None and not (type(count) is int and 0 < count <= MOST_FRAMES):
        raise ValueError(f"the number of frames {str(count)[:40]} is not one of 1 to {MOST_FRAMES}")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"an excerpt ends at {end:g} s, before it begins at {start or 0.0:g} s")
    source = tuple(part[key]) if files else part[key]
    excerpt = {"source": source, "start": start or 0.0, "end": end, "frames": count}
    return {**part, key: excerpt}


def _one(part: dict[str, Any], names: Sequence[str]) -> Any:
    found = [part[name] for name in names if part.get(name) not in (None, "")]
    if any(value != found[0] for value in found):
        raise ValueError(f"a part of a message has two values for one thing: {found}")
    return found[0] if found else None


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    clock = CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        if isinstance(value, bool):
            raise ValueError
        seconds = (
            3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
            if clock
            else float(value)
        )
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"the time {str(value)[:40]!r} is not a number of seconds within a video")
    return seconds


class Visual(NamedTuple):
    """One video, or an image as one frame."""

    patches: np.ndarray  # uint8 [n, P*P*3], frame by frame, row by row
    grids: list[tuple[int, int]]  # (rows, columns) of every frame


class ElvaImageProcessor(BaseImageProcessor):
    """Resizes frames to multiples of the patch size, keeping their aspect ratio, and cuts patches.

    Args:
      patch_size: side of a patch in pixels.
      longest_edge: longest edge of a frame in pixels.
      upscale: whether smaller frames are scaled up to it.
      num_frames: frames sampled from a video file, uniformly in time. Of a list of frames, all are
        used.
      fps: frames per second instead, up to `num_frames`; 0: `num_frames` over the whole video.
      num_low_frames: hybrid resolution: the number of additional frames at `low_longest_edge`.
      low_longest_edge: longest edge of these in pixels.
      hybrid_policy: 'interleave' spreads the high-resolution frames evenly over the video; 'ends'
        puts them at both ends; 'scene' takes those that differ most from the frame before them.
    """

    model_input_names = ("pixel_values", "tube_ids")
    valid_kwargs = ElvaImagesKwargs

    def __init__(
        self,
        patch_size: int = 28,
        longest_edge: int = 672,
        upscale: bool = False,
        num_frames: int = 32,
        fps: float = 0.0,
        num_low_frames: int = 0,
        low_longest_edge: int = 336,
        hybrid_policy: str = "interleave",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.patch_size, self.longest_edge, self.upscale = patch_size, longest_edge, upscale
        self.num_frames, self.fps = num_frames, fps
        self.num_low_frames, self.low_longest_edge, self.hybrid_policy = (
            num_low_frames,
            low_longest_edge,
            hybrid_policy,
        )

    def image(self, source, **options) -> Visual:
        """One image: a path, URL, PIL image or uint8 array [H, W, 3]."""
        options = self._options(options)
        return self._cut(
            [self._resize(from_array(read_image(source)), options["longest_edge"], options)],
            options,
        )

    def video(self, source, **options) -> Visual:
        """One video: the path of a file or folder of images, or frames as an array or a list."""
        options = self._options(options)
        low, high = options["num_low_frames"], options["num_frames"]
        if isinstance(source, dict):  # see `excerpt_of`
            if source["frames"]:
                low, high, options = 0, source["frames"], {**options, "fps": 0.0}
            span = source["start"], source["end"]
            frames = read_video(source["source"], high + low, options["fps"] or None, span)
        elif isinstance(source, (str, Path)):
            frames = read_video(source, high + low, options["fps"] or None)
        else:
            frames = [from_array(read_image(frame)) for frame in source]
        if not frames:
            raise ValueError("a video needs at least one frame")
        edges = [options["longest_edge"]] * len(frames)
        if low:
            # A video with fewer frames than asked for keeps the proportion.
            count = (
                min(len(frames), max(1, round(len(frames) * high / (high + low)))) if high else 0
            )
            is_high = hybrid(frames, count, options["hybrid_policy"])
            edges = [
                edge if chosen else options["low_longest_edge"]
                for edge, chosen in zip(edges, is_high, strict=True)
            ]
        return self._cut(
            [self._resize(frame, edge, options) for frame, edge in zip(frames, edges, strict=True)],
            options,
        )

    def preprocess(self, images, return_tensors=None, **options) -> BatchFeature:
        """Patches of images; `ElvaProcessor` makes whole prompts of images and text.

        Args:
          images: one or several: paths, URLs, PIL images, or arrays uint8 [H, W, 3].
          return_tensors: None and "np" for NumPy arrays, "pt" for PyTorch's.
          **options: other values of the settings, such as `longest_edge`.

        Returns:
          BatchFeature of pixel_values, uint8 [B, N, P*P*3], zeros after the patches of an image,
          and grids, for each image the (rows, columns) of its only frame.
        """
        found = [self.image(image, **options) for image in flat_images(images)]
        return self._features(found, return_tensors)

    def _features(self, found: Sequence[Visual], return_tensors: str | None) -> BatchFeature:
        if not found:
            raise ValueError("nothing to do: there are no images or videos")
        width = found[0].patches.shape[1]
        pixels = np.zeros((len(found), max(len(each.patches) for each in found), width), np.uint8)
        for out, each in zip(pixels, found, strict=True):
            out[: len(each.patches)] = each.patches
        data = {"pixel_values": pixels, "grids": [each.grids for each in found]}
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["grids"])

    def _options(self, given: dict) -> dict:
        names = ElvaImagesKwargs.__annotations__
        return {
            name: getattr(self, name) if given.get(name) is None else given[name]
            for name in names
            if hasattr(self, name)
        }

    def _resize(self, picture: Picture, longest_edge: int, options: dict) -> np.ndarray:
        return picture.at(
            target_size(
                picture.height,
                picture.width,
                longest_edge,
                options["patch_size"],
                options["upscale"],
            )
        )

    def _cut(self, frames: Sequence[np.ndarray], options: dict) -> Visual:
        size = options["patch_size"]
        grids = [(frame.shape[0] // size, frame.shape[1] // size) for frame in frames]
        return Visual(np.concatenate([patchify(frame, size) for frame in frames]), grids)


def target_size(
    height: int, width: int, longest_edge: int, patch_size: int, upscale: bool
) -> tuple[int, int]:
    """The (height, width) of a resized frame: multiples of the patch size, halves rounded up."""
    if min(height, width, patch_size) < 1 or longest_edge < patch_size:
        raise ValueError(
            f"cannot fit a {height}x{width} frame: longest_edge={longest_edge} must hold at least"
            f" one patch of {patch_size}"
        )
    longest = max(height, width)
    target = longest_edge if upscale else min(longest, longest_edge)
    limit = longest_edge // patch_size
    counts = (
        (2 * edge * target + longest * patch_size) // (2 * longest * patch_size)
        for edge in (height, width)
    )
    rows, columns = (min(max(count, 1), limit) for count in counts)
    return rows * patch_size, columns * patch_size


def patchify(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8 [n, size*size*3]: patches of a frame, row by row, each as (row, column, channel)."""
    rows, columns = frame.shape[0] // size, frame.shape[1] // size
    return frame.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(rows * columns, -1)


def hybrid(frames: Sequence[Picture], num_high: int, policy: str) -> np.ndarray:
    """bool [T]: which of T frames in temporal order are high-resolution ones."""
    total = len(frames)
    high = np.zeros(total, bool)
    if policy == "interleave":
        high[(2 * np.arange(num_high) + 1) * total // (2 * max(num_high, 1))] = True
    elif policy == "ends":
        high[: (num_high + 1) // 2] = True
        high[total - num_high // 2 :] = True
    elif policy == "scene":
        high[
            np.argsort(-frame_change([picture.pixels() for picture in frames]), kind="stable")[
                :num_high
            ]
        ] = True
    else:
        raise ValueError(f"hybrid_policy: {policy!r} is unknown; use interleave, ends or scene")
    return high


def frame_change(frames: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [T]: difference of each frame from the one before it, in small gray pictures."""
    size, box = (GRAY_SIDE, GRAY_SIDE), Image.Resampling.BOX
    gray = [
        np.asarray(Image.fromarray(frame).convert("L").resize(size, box), np.int64)
        for frame in frames
    ]
    return np.concatenate([[np.inf], np.abs(np.diff(gray, axis=0)).sum(axis=(1, 2))])


def _is_frame(item) -> bool:
    return isinstance(item, Image.Image) or getattr(item, "ndim", 0) == 3


def flat_images(images) -> list:
    """All images in a nested list."""
    if images is None:
        return []
    if isinstance(images, (str, Path)) or _is_frame(images):
        return [images]
    return [image for item in images for image in flat_images(item)]


def flat_videos(videos) -> list:
    """All videos in a nested list; a list of frames is one video, a list of strings several."""
    if videos is None:
        return []
    if isinstance(videos, (str, Path, dict)) or getattr(videos, "ndim", 0) == 4:
        return [videos]
    if _is_frame(videos):
        return [[videos]]
    videos = list(videos)
    if videos and all(map(_is_frame, videos)):
        return [videos]
    return [video for item in videos for video in flat_videos(item)]


__all__ = ["ElvaImageProcessor"]
