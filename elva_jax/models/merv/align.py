"""Alignment of encoders (arXiv 2501.01426, section 3.1): every one to the same grid of tokens.

    features [T', G, G, C] of any encoder -- mean over (slot, row, column) --> [slots, g, g, C]

Cell i of n along an axis of G covers [floor(i G / n), ceil((i + 1) G / n)), as in
`torch.nn.AdaptiveAvgPool3d`, so that 14 -> 8 has overlapping cells and 7 -> 8 repeats some rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from elva_jax.ops.pooling import adaptive_average_matrix
from elva_jax.utils.arrays import AnyArray


def adaptive_average_pool_3d(
    features: Float[AnyArray, "*batch T Y X C"], slots: int, grid: int
) -> Float[Array, "*batch L C"]:
    """Means over cells in space and time, summed in float32; L = slots * grid * grid.

    Args:
      features: T' frames of G x G cells.
      slots: frames of the result.
      grid: rows and columns of the result.

    Returns:
      Tokens in order of frame, row and column, in the type of the features.
    """
    pooled, batch = features.astype(jnp.float32), features.ndim - 4
    for axis, cells in enumerate((slots, grid, grid), start=batch):
        if (size := features.shape[axis]) != cells:
            matrix = adaptive_average_matrix(size, cells)
            exact = jax.lax.Precision.HIGHEST
            moved = jnp.tensordot(pooled, matrix, ((axis,), (1,)), precision=exact)
            pooled = jnp.moveaxis(moved, -1, axis)
    return jnp.asarray(pooled, features.dtype).reshape(
        *features.shape[:batch], -1, pooled.shape[-1]
    )
