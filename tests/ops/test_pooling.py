"""Adaptive pooling against PyTorch's on grids that shrink and grow."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.ops.pooling import adaptive_average_pool
from elva_jax.video.layout import Clip, Kind, Text, build_layout, pack

S, F, C = 2600, 3, 3
side = st.integers(1, 40)
pool = jax.jit(adaptive_average_pool)


def torch_pool(features_GxGxC, grid):
    pooled = torch.nn.functional.adaptive_avg_pool2d(
        torch.tensor(features_GxGxC).permute(2, 0, 1), grid
    )
    return pooled.permute(1, 2, 0).reshape(-1, features_GxGxC.shape[-1]).numpy()


@given(
    st.sampled_from([(27, 27), (8, 8), (4, 7)]),
    side,
    side,
    st.sampled_from([0.0, 100.0]),
    st.integers(0, 1000),
)
def test_equals_torch_on_any_grid(teacher, rows, columns, offset, seed):
    grids = [(rows, columns), (columns % 7 + 1, rows % 5 + 1), (rows % 20 + 1, 20)]
    layout = pack([build_layout([Text([1]), Clip(grids[:2])]), build_layout([Clip(grids[2:])])], S)
    features = np.random.default_rng(seed).normal(size=(F, *teacher, C)).astype(
        np.float32
    ) + np.float32(offset)
    pooled = np.asarray(pool(features, layout.frame, layout.cell))
    for k, grid in enumerate(grids):
        mine = (layout.kind == Kind.PATCH) & (layout.frame == k)
        np.testing.assert_allclose(
            pooled[mine], torch_pool(features[k], grid), rtol=1e-5, atol=1e-5
        )
    assert not pooled[layout.kind != Kind.PATCH].any()


def test_merged_tokens_and_missing_frames():
    """Cells pool alike in any subset and order; frames that the teacher lacks give zeros."""
    layout = pack([build_layout([Clip([(3, 5)] * 2)])], 64)
    features = np.random.default_rng(0).normal(size=(1, 9, 9, C)).astype(np.float32)
    full = np.asarray(adaptive_average_pool(features, layout.frame, layout.cell))
    some = np.random.default_rng(1).permutation(64)[:20]
    np.testing.assert_array_equal(
        adaptive_average_pool(features, layout.frame[some], layout.cell[some]), full[some]
    )
    assert full[(layout.frame == 0) & (layout.kind == Kind.PATCH)].any(axis=-1).all()
    assert not full[layout.frame == 1].any()


@pytest.mark.parametrize("grid", [(2, 3), (11, 4)])
def test_gradient_equals_torch(grid):
    layout = build_layout([Clip([grid])])
    patches = layout.kind == Kind.PATCH
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 6, 6, C)).astype(np.float32)
    weight = rng.normal(size=(grid[0] * grid[1], C)).astype(np.float32)

    def objective(features):
        return (adaptive_average_pool(features, layout.frame, layout.cell)[patches] * weight).sum()

    leaf = torch.tensor(features[0].transpose(2, 0, 1), requires_grad=True)
    pooled = torch.nn.functional.adaptive_avg_pool2d(leaf, grid).permute(1, 2, 0).reshape(-1, C)
    (pooled * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(
        jax.jit(jax.grad(objective))(features)[0], leaf.grad.permute(1, 2, 0), atol=1e-5
    )
