"""Alignment against PyTorch's adaptive average pooling in 3-D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elva_jax.models.merv.align import adaptive_average_pool_3d
from elva_jax.ops.pooling import adaptive_average_matrix

pool = jax.jit(adaptive_average_pool_3d, static_argnums=(1, 2))
side, steps = st.integers(1, 20), st.integers(1, 18)


@settings(max_examples=8)
@example(16, 14, 14, 16, 8, 0.0)
@example(16, 7, 7, 16, 8, 0.0)
@example(8, 16, 16, 16, 8, 100.0)
@given(steps, side, side, steps, st.integers(1, 12), st.sampled_from([0.0, 100.0]))
def test_equals_torch_on_any_shape(frames, rows, columns, slots, grid, offset):
    rng = np.random.default_rng(frames * rows + columns)
    features = rng.normal(offset, 1.0, (2, frames, rows, columns, 3)).astype(np.float32)
    theirs = torch.nn.functional.adaptive_avg_pool3d(
        torch.tensor(features, dtype=torch.float64).permute(0, 4, 1, 2, 3), (slots, grid, grid)
    )
    expected = theirs.permute(0, 2, 3, 4, 1).reshape(2, -1, 3).numpy()
    pooled = np.asarray(pool(features, slots, grid))
    np.testing.assert_allclose(pooled, expected, rtol=1e-6, atol=1e-6)


def test_bins_of_14_rows_overlap_as_published():
    rows = [np.flatnonzero(row).tolist() for row in adaptive_average_matrix(14, 8)]
    assert rows == [
        *([0, 1], [1, 2, 3], [3, 4, 5], [5, 6]),
        *([7, 8], [8, 9, 10], [10, 11, 12], [12, 13]),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_type_of_the_features_is_kept(dtype):
    pooled = pool(jnp.ones((2, 4, 4, 5), dtype), 2, 2)
    assert pooled.dtype == dtype
    assert pooled.shape == (8, 5)
