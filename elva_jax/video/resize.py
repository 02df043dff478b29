"""Resizes frames at native aspect ratio and cuts them into patches (paper, section 3.1).

The longest edge is limited to L pixels, then both edges are rounded to multiples of the patch size
P:

    scale = min(1, L / max(H, W))        h, w = round(scale * (H, W) / P) * P,  P <= h, w <= L
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from elva_jax.errors import ConfigError

Size = tuple[int, int]  # (height, width) in pixels


def target_size(
    height: int, width: int, *, longest_edge: int, patch_size: int, upscale: bool = False
) -> Size:
    """The (height, width) in pixels that a frame is resized to.

    The frame is scaled down so that its longest edge is at most `longest_edge`; with `upscale` it
    is also scaled up. Then both edges are rounded to the nearest multiple of `patch_size` (half
    up), between one patch and the largest multiple in `longest_edge`.

    Raises:
      ConfigError: `longest_edge` is less than one patch, or an edge is not positive.
    """
    if min(height, width, patch_size) < 1 or longest_edge < patch_size:
        raise ConfigError(
            f"cannot fit a {height}x{width} frame: longest_edge={longest_edge} "
            f"must hold at least one patch of {patch_size}"
        )
    longest = max(height, width)
    target = longest_edge if upscale else min(longest, longest_edge)
    limit = longest_edge // patch_size

    def rounded(edge: int) -> int:
        # round(edge * target / longest / patch_size) in integers, so that halves are exact.
        count = (2 * edge * target + longest * patch_size) // (2 * longest * patch_size)
        return min(max(count, 1), limit) * patch_size

    return rounded(height), rounded(width)


def resize_frame(frame: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a uint8 [H, W, 3] frame to (height, width), bicubic with antialiasing.

    A frame that already has this size is returned unchanged.
    """
    if frame.shape[:2] == tuple(size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


@dataclasses.dataclass(frozen=True, slots=True)
class LazyFrame:
    """An upright frame whose pixels are converted on request.

    Video decoders convert colors and scale in one operation, which is several times as fast as two.
    """

    height: int
    width: int
    at: Callable[[Size], np.ndarray]  # size -> uint8 [h, w, 3]

    def pixels(self) -> np.ndarray:
        """The frame in its original size, uint8 [H, W, 3]."""
        return self.at((self.height, self.width))

    @classmethod
    def from_array(cls, frame: np.ndarray) -> LazyFrame:
        """Wraps decoded pixels, uint8 [H, W, 3]."""
        height, width = frame.shape[:2]
        return cls(height, width, lambda size: resize_frame(frame, size))


def patchify(frames: Sequence[np.ndarray], patch_size: int) -> np.ndarray:
    """Cuts uint8 [h, w, 3] frames into [n, P*P*3] patches.

    Patches are ordered by frame, row and column; the pixels of a patch by row, column and channel.

    Raises:
      ConfigError: an edge is not a multiple of the patch size.
    """
    for frame in frames:
        if frame.shape[0] % patch_size or frame.shape[1] % patch_size:
            size = "x".join(map(str, frame.shape[:2]))
            raise ConfigError(
                f"a frame of {size} pixels cannot be cut into patches of {patch_size}; "
                "resize it to target_size first"
            )
    grids = patch_grids(frames, patch_size)
    width = patch_size * 3
    out = np.empty((sum(rows * columns for rows, columns in grids), patch_size * width), np.uint8)
    start = 0
    for frame, (rows, columns) in zip(frames, grids, strict=True):
        stop = start + rows * columns
        patches = out[start:stop].reshape(rows, columns, patch_size, width)
        # The only copy of the pixels.
        patches[...] = frame.reshape(rows, patch_size, columns, width).swapaxes(1, 2)
        start = stop
    return out


def patch_grids(frames: Sequence[np.ndarray], patch_size: int) -> tuple[tuple[int, int], ...]:
    """The (rows, columns) of patches of every frame."""
    return tuple((len(frame) // patch_size, frame.shape[1] // patch_size) for frame in frames)
