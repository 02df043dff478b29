"""Array types that annotations share, and arrays that JAX takes without a copy."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray  # for functions that take NumPy's arrays as they are
ALIGNMENT = 64  # bytes; JAX's CPU backend uses memory of this alignment as it is


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array without values, which `jax.device_put` does not copy on a CPU."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    held = np.empty(size + ALIGNMENT, np.uint8)
    start = -held.ctypes.data % ALIGNMENT
    return held[start : start + size].view(dtype).reshape(shape)


def aligned_copy(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The values in another type, as `aligned_empty` makes arrays."""
    out = aligned_empty(values.shape, dtype)
    out[...] = values
    return out
