"""Videos and images as the model takes them: patches and the grids of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elva_jax.errors import VideoError
from elva_jax.video.hybrid import Hybrid, reduce_frame, settle
from elva_jax.video.layout import Clip
from elva_jax.video.picture import from_array
from elva_jax.video.read import Frames, read_frames
from elva_jax.video.resize import patchify

Source = str | Path | bytes | Frames | Sequence[np.ndarray]


class Visual(NamedTuple):
    """One video or image."""

    clip: Clip  # the (rows, columns) of every frame
    patches: np.ndarray  # uint8 [N, P*P*3], frame by frame, row by row


def load(
    source: Source,
    *,
    num_frames: int,
    fps: float,
    longest_edge: int,
    patch_size: int,
    upscale: bool = False,
    square: int = 0,
    name: str | None = None,
    hybrid: Hybrid | None = None,
) -> Visual:
    """Reads, samples, resizes and cuts up a video or image.

    Args:
      source: a path, a file's bytes, or frames at hand (uint8 [H, W, 3] each), which are all taken.
      num_frames: most frames sampled from a file.
      fps: frames a second instead, up to num_frames; 0: spread num_frames over the video.
      longest_edge, patch_size, upscale: as in `video.resize.target_size`; pixels.
      square: side that frames are squashed to instead, for an encoder-based model, which reads them bare; 0: native resolution.
      name: what errors call the source.
      hybrid: frames of two resolutions, instead of `num_frames` and `longest_edge`.

    Raises:
      VideoError: the source cannot be read, has no frames, or a frame is not uint8 [H, W, 3].
    """
    hybrid = hybrid or Hybrid(num_frames, 0, longest_edge)
    reduce = partial(
        reduce_frame, hybrid=hybrid, patch_size=patch_size, upscale=upscale, square=square
    )
    if isinstance(source, (str, Path, bytes)):
        frames = read_frames(
            source, num_frames=hybrid.frames, fps=fps, transform=reduce, name=name
        ).pixels
    else:
        given = list(source.pixels if isinstance(source, Frames) else source)
        for frame in given:
            if not (
                isinstance(frame, np.ndarray)
                and frame.dtype == np.uint8
                and frame.ndim == 3
                and frame.shape[2] == 3
            ):
                found = (
                    f"{frame.dtype}{list(frame.shape)}"
                    if isinstance(frame, np.ndarray)
                    else type(frame).__name__
                )
                raise VideoError(
                    name or "<frames>",
                    f"a frame must be a uint8 array [height, width, 3], got {found}",
                )
        frames = [reduce(from_array(frame)) for frame in given]
    called = name or (str(source) if isinstance(source, (str, Path)) else "<frames>")
    return from_frames(settle(frames, hybrid), patch_size, called, bare=square > 0)


def from_frames(
    frames: Sequence[np.ndarray], patch_size: int, name: str = "<frames>", bare: bool = False
) -> Visual:
    """Cuts up frames whose edges are multiples of the patch already; `bare` as in `video.layout.Clip`.

    Raises:
      VideoError: there is no frame.
    """
    if not frames:
        raise VideoError(name, "has no frames")
    grids = tuple((frame.shape[0] // patch_size, frame.shape[1] // patch_size) for frame in frames)
    return Visual(Clip(grids, bare), patchify(frames, patch_size))


def keep_frames(visual: Visual, indices: Sequence[int]) -> Visual:
    """Only some of the frames."""
    ends = np.cumsum([rows * columns for rows, columns in visual.clip.grids])
    starts = np.concatenate([[0], ends[:-1]])
    return Visual(
        visual.clip._replace(grids=tuple(visual.clip.grids[i] for i in indices)),
        np.concatenate([visual.patches[starts[i] : ends[i]] for i in indices]),
    )
