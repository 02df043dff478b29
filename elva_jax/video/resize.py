"""Native-resolution resizing (paper, section 3.1): keep the aspect ratio, limit the longest edge, round both edges to patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from elva_jax.errors import ConfigError


def target_size(
    height: int, width: int, *, longest_edge: int, patch_size: int, upscale: bool = False
) -> tuple[int, int]:
    """The (height, width) in pixels that a frame is resized to.

    The frame is scaled so that its longest edge is at most `longest_edge`; it is scaled up only with `upscale`. Then both edges are
    rounded to the nearest multiple of `patch_size` (halves up), to at least one patch and to no more than fit into `longest_edge`.

    Raises:
      ConfigError: `longest_edge` holds no patch, or an edge is not positive.
    """
    if min(height, width, patch_size) < 1 or longest_edge < patch_size:
        raise ConfigError(
            f"cannot fit a {height}x{width} frame: longest_edge={longest_edge} must hold at least one patch of {patch_size}"
        )
    longest = max(height, width)
    target = longest_edge if upscale else min(longest, longest_edge)
    limit = longest_edge // patch_size
    # round(edge * target / longest / patch_size) in integers: no rounding error decides a half.
    rows, columns = (
        (2 * edge * target + longest * patch_size) // (2 * longest * patch_size)
        for edge in (height, width)
    )
    return tuple(min(max(count, 1), limit) * patch_size for count in (rows, columns))


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a uint8 [H, W, 3] frame to `size` = (height, width), bicubic with antialiasing; a frame of that size is returned as it is."""
    if frame.shape[:2] == tuple(size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def patchify(frames: Sequence[np.ndarray], patch_size: int) -> np.ndarray:
    """Cuts uint8 [h, w, 3] frames into [n, P*P*3] patches, frame by frame and row by row; inside a patch: rows, columns, channels.

    Raises:
      ConfigError: an edge is not a multiple of the patch size.
    """
    for frame in frames:
        if frame.shape[0] % patch_size or frame.shape[1] % patch_size:
            size = "x".join(map(str, frame.shape[:2]))
            raise ConfigError(
                f"a frame of {size} pixels cannot be cut into patches of {patch_size}; resize it to target_size first"
            )
    grids = [(frame.shape[0] // patch_size, frame.shape[1] // patch_size) for frame in frames]
    out = np.empty(
        (sum(rows * columns for rows, columns in grids), patch_size * patch_size * 3), np.uint8
    )
    start = 0
    for frame, (rows, columns) in zip(frames, grids, strict=True):
        place = out[start : start + rows * columns].reshape(
            rows, columns, patch_size, patch_size * 3
        )
        place[...] = frame.reshape(rows, patch_size, columns, patch_size * 3).swapaxes(
            1, 2
        )  # the one copy of every pixel
        start += rows * columns
    return out
