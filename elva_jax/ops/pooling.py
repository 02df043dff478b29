"""Adaptive average pooling of frames onto any grid, in the static shape of a token sequence.

Cell i of n along an axis of G covers [floor(i G / n), ceil((i + 1) G / n)), whether the grid
shrinks or grows, as in `torch.nn.AdaptiveAvgPool2d`. For G = 5, n = 3:

    axis    0  1  2  3  4
    cell 0  ----
    cell 1     -------          neighboring cells may overlap
    cell 2           ----
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from elva_jax.utils.arrays import AnyArray


def adaptive_average_pool(
    features: Float[AnyArray, "F G W C"], frame: Int[AnyArray, " S"], cell: Int[AnyArray, "S 4"]
) -> Float32[Array, "S C"]:
    """The teacher's features at every patch (paper, section 3.3), unbatched.

    Args:
      features: one grid of G x W cells per frame.
      frame: the frame of each token.
      cell: (row, column, rows, columns) of each patch in its own grid; -1 for other tokens.

    Returns:
      The mean over each patch's cell; zeros for tokens that are no patches, or whose frame is not
      among the F.
    """
    frames, height, width, channels = features.shape
    frame, cell = jnp.asarray(frame), jnp.asarray(cell)
    is_patch_S = (cell[:, 0] >= 0) & (frame >= 0) & (frame < frames)
    row_S, column_S, rows_S, columns_S = (
        jnp.where(is_patch_S, cell[:, i], fill) for i, fill in enumerate((0, 0, 1, 1))
    )
    frame_S = jnp.where(is_patch_S, frame, 0)
    top_S, bottom_S = _interval(row_S, rows_S, height)
    left_S, right_S = _interval(column_S, columns_S, width)

    # Prefix sums along the columns give each row's part of a cell as one difference. Rows are added
    # one by one: a summed-area table over both axes would lose digits in float32.
    prefix = jnp.cumsum(features.astype(jnp.float32), axis=2)
    prefix = jnp.pad(prefix, ((0, 0), (0, 0), (1, 0), (0, 0)))  # [F, G, W + 1, C]

    def add_row(sum_SxC, row):
        line_FxWxC = jax.lax.dynamic_index_in_dim(prefix, row, axis=1, keepdims=False)
        inside_S = (row >= top_S) & (row < bottom_S)
        row_sum_SxC = line_FxWxC[frame_S, right_S] - line_FxWxC[frame_S, left_S]
        return sum_SxC + jnp.where(inside_S[:, None], row_sum_SxC, 0.0), None

    zeros_SxC = jnp.zeros((frame_S.shape[0], channels), jnp.float32)
    sum_SxC, _ = jax.lax.scan(add_row, zeros_SxC, jnp.arange(height))
    area_S = ((bottom_S - top_S) * (right_S - left_S)).astype(jnp.float32)
    return jnp.where(is_patch_S[:, None], sum_SxC / area_S[:, None], 0.0)


def adaptive_average_matrix(size: int, cells: int) -> Float32[np.ndarray, "{cells} {size}"]:
    """The pooling of one axis as a matrix, made on the host: each row averages one cell.

    Example:
      >>> from elva_jax.ops.pooling import adaptive_average_matrix
      >>> adaptive_average_matrix(5, 2).round(2).tolist()
      [[0.33, 0.33, 0.33, 0.0, 0.0], [0.0, 0.0, 0.33, 0.33, 0.33]]
    """
    start_N, end_N = _interval(np.arange(cells), cells, size)
    place_G = np.arange(size)[None]
    inside_NxG = (place_G >= start_N[:, None]) & (place_G < end_N[:, None])
    return (inside_NxG / (end_N - start_N)[:, None]).astype(np.float32)


def _interval(
    index: Int[AnyArray, " S"], count: Int[AnyArray, " S"] | int, size: int
) -> tuple[Int[AnyArray, " S"], Int[AnyArray, " S"]]:
    """Start and end (exclusive) of cell `index` of `count` along an axis of `size`."""
    return index * size // count, -(-(index + 1) * size // count)
