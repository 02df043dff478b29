"""Reads videos and images as input of the model: patches, and the patch grids of the frames.

Training and inference both call `read_clip`, so that their pixels are identical.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from elva_jax.errors import ConfigError, VideoError
from elva_jax.video.hybrid import Hybrid, SizedFrame, assign_resolution, draw_sizes
from elva_jax.video.layout import Clip
from elva_jax.video.merv import MervSettings, keep_slots, read_merv_patches
from elva_jax.video.read import WHOLE, Frames, Span, read_frames
from elva_jax.video.resize import LazyFrame, patch_grids, patchify

Source = str | Path | bytes | tuple[str, ...] | Frames | Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How a video or image becomes patches.

    Attributes:
      num_frames: maximum number of frames sampled from a file.
      longest_edge: maximum length in pixels of a frame's longest edge.
      patch_size: P, the side of a patch in pixels.
      fps: frames sampled per second, up to num_frames in all; 0 spreads num_frames evenly over the
        video.
      upscale: whether smaller frames are scaled up to longest_edge.
      square: for an encoder-based model: side of the squares that frames are stretched to, without
        frame and line tokens; 0 keeps the native resolution.
      hybrid: frames of two sizes, instead of num_frames and longest_edge.
      merv: for MERV: its own number and shapes of frames, instead of all others.
    """

    num_frames: int
    longest_edge: int
    patch_size: int
    fps: float = 0.0
    upscale: bool = False
    square: int = 0
    hybrid: Hybrid | None = None
    merv: MervSettings | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visual:
    """One video or image as arrays."""

    clip: Clip  # the patch grid of every frame
    patches: np.ndarray  # uint8 [N, P*P*3], in order of frames and rows
    teacher_frames: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    # uint8 [T, Ht, Ht, 3] of each side Ht that was asked for
    merv: MervSettings | None = None  # how patches for MERV hold the pixels


class _Drawn(NamedTuple):
    """A decoded frame, resized for the model and for the teachers."""

    sizes: SizedFrame
    teacher: tuple[np.ndarray, ...]


def read_clip(
    source: Source,
    settings: ClipSettings,
    *,
    name: str | None = None,
    teacher_sizes: Sequence[int] = (),
    span: Span = WHOLE,
) -> Visual:
    """Reads, samples and resizes a video or image, and cuts its frames into patches.

    Args:
      source: a path, the bytes of a file, paths of images, or frames in memory (uint8 [H, W, 3];
        all are used, but by MERV).
      settings: number and sizes of the frames.
      name: name of the source in errors; by default its path.
      teacher_sizes: sides Ht of the square copies of the frames for teachers.
      span: the seconds between which frames are sampled; see `read_frames`.

    Returns:
      The grids, patches uint8 [N, P*P*3], and teacher_frames uint8 [T, Ht, Ht, 3] of the clip for
      each of `teacher_sizes`.

    Raises:
      VideoError: the source cannot be read, has no frames, or a frame is not uint8 [H, W, 3].
      ConfigError: MERV is combined with hybrid resolution.
    """
    if settings.merv and settings.hybrid:
        raise ConfigError(
            "hybrid resolution: MERV's encoders read only squares of their own size; leave hybrid"
            " resolution off"
        )
    if settings.merv:
        return _read_for_merv(source, settings.merv, name, span)
    hybrid = settings.hybrid or Hybrid(
        high_frames=settings.num_frames, low_frames=0, high_edge=settings.longest_edge
    )

    def draw(frame: LazyFrame) -> _Drawn:
        sizes = draw_sizes(
            frame,
            hybrid,
            patch_size=settings.patch_size,
            upscale=settings.upscale,
            square=settings.square,
        )
        return _Drawn(sizes, tuple(frame.at((side, side)) for side in teacher_sizes))

    if isinstance(source, (str, Path, bytes)) or _is_paths(source):
        drawn = read_frames(
            source, num_frames=hybrid.frames, fps=settings.fps, transform=draw, name=name, span=span
        ).pixels
    else:
        given: Any = source.pixels if isinstance(source, Frames) else source
        drawn = [draw(LazyFrame.from_array(_checked(frame, name))) for frame in given]
    frames = assign_resolution([each.sizes for each in drawn], hybrid)
    if not frames:
        raise VideoError(name or "<frames>", "has no frames")
    return Visual(
        clip=Clip(patch_grids(frames, settings.patch_size), bare=settings.square > 0),
        patches=patchify(frames, settings.patch_size),
        teacher_frames={
            side: np.stack([each.teacher[k] for each in drawn])
            for k, side in enumerate(teacher_sizes)
        },
    )


def _read_for_merv(source: Source, settings: MervSettings, name: str | None, span: Span) -> Visual:
    """`read_clip` for MERV, which has no teachers."""
    if isinstance(source, (str, Path, bytes)) or _is_paths(source):
        medium: Any = source
    else:
        given: Any = source.pixels if isinstance(source, Frames) else source
        medium = [LazyFrame.from_array(_checked(frame, name)) for frame in given]
    patches = read_merv_patches(medium, settings, name=name, span=span)
    return Visual(clip=settings.clip, patches=patches, merv=settings)


def _is_paths(source: Source) -> TypeGuard[tuple[str, ...]]:
    return isinstance(source, tuple) and all(isinstance(file, str) for file in source)


def _checked(frame: np.ndarray, name: str | None) -> np.ndarray:
    """Returns the frame if it is a uint8 RGB image, and raises VideoError otherwise."""
    if not isinstance(frame, np.ndarray):
        found = type(frame).__name__
    elif frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    else:
        found = f"{frame.dtype}{list(frame.shape)}"
    raise VideoError(
        name or "<frames>", f"a frame must be a uint8 array [height, width, 3], got {found}"
    )


def keep_frames(visual: Visual, indices: Sequence[int]) -> Visual:
    """Selects frames of a video.

    MERV reads as many frames of any video: it sees the first frame of each of these slots, repeated
    as they would be in a video of their own.
    """
    if visual.merv:
        slots = [index % visual.merv.slots for index in indices]
        patches = keep_slots(visual.patches, visual.merv, slots)
        return dataclasses.replace(visual, patches=patches)
    ends = np.cumsum([rows * columns for rows, columns in visual.clip.grids])
    starts = np.concatenate([[0], ends[:-1]])
    grids = tuple(visual.clip.grids[i] for i in indices)
    patches = np.concatenate([visual.patches[starts[i] : ends[i]] for i in indices])
    kept = list(indices)
    return Visual(
        clip=dataclasses.replace(visual.clip, grids=grids),
        patches=patches,
        teacher_frames={side: frames[kept] for side, frames in visual.teacher_frames.items()},
    )
