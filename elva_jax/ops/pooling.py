"""Adaptive average pooling of frames onto any grid, in the static shape of a token sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def adaptive_average_pool(
    features_FxGxGxC: jax.Array, frame_S: jax.Array, cell_Sx4: jax.Array
) -> jax.Array:
    """The teacher's features at every patch: what `torch.nn.AdaptiveAvgPool2d` gives on the patch grid of its frame (paper, section 3.3).

    Output cell i of n over an axis of G covers floor(i*G/n) up to ceil((i+1)*G/n), whether the grid shrinks or grows. Unbatched (vmap it);
    linear in tokens times G: prefix sums along the columns, then one masked step for each of the rows, which keeps float32 accuracy where
    a summed-area table over both axes would lose digits.

    Args:
      features_FxGxGxC: one grid a frame; the two sides may differ.
      frame_S: int32, the frame of each token, an index below F.
      cell_Sx4: int32 (row, column, rows, columns) of each patch in its own grid; -1 for tokens that are no patches.

    Returns:
      float32 [S, C]; zeros for tokens that are no patches, or whose frame is not among the F.
    """
    frames, height, width, channels = features_FxGxGxC.shape
    frame_S, cell_Sx4 = jnp.asarray(frame_S), jnp.asarray(cell_Sx4)
    is_patch_S = (cell_Sx4[:, 0] >= 0) & (frame_S >= 0) & (frame_S < frames)
    row_S, column_S, rows_S, columns_S = (
        jnp.where(is_patch_S, cell_Sx4[:, i], fill) for i, fill in enumerate((0, 0, 1, 1))
    )
    frame_S = jnp.where(is_patch_S, frame_S, 0)
    top_S, bottom_S = _interval(row_S, rows_S, height)
    left_S, right_S = _interval(column_S, columns_S, width)

    prefix = jnp.cumsum(features_FxGxGxC.astype(jnp.float32), axis=2)
    prefix = jnp.pad(prefix, ((0, 0), (0, 0), (1, 0), (0, 0)))  # [F, G, G+1, C]

    def add_row(sum_SxC, row):
        line_FxWxC = jax.lax.dynamic_index_in_dim(prefix, row, axis=1, keepdims=False)
        inside_S = (row >= top_S) & (row < bottom_S)
        row_sum_SxC = line_FxWxC[frame_S, right_S] - line_FxWxC[frame_S, left_S]
        return sum_SxC + jnp.where(inside_S[:, None], row_sum_SxC, 0.0), None

    sum_SxC, _ = jax.lax.scan(
        add_row, jnp.zeros((frame_S.shape[0], channels), jnp.float32), jnp.arange(height)
    )
    area_S = ((bottom_S - top_S) * (right_S - left_S)).astype(jnp.float32)
    return jnp.where(is_patch_S[:, None], sum_SxC / area_S[:, None], 0.0)


def _interval(index_S: jax.Array, count_S: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Start and end (exclusive) of output cell `index` of `count` over an axis of `size`."""
    return index_S * size // count_S, -(-(index_S + 1) * size // count_S)
