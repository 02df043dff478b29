"""Segment softmax against a loop."""

import jax
import numpy as np

from elva_jax.ops.segment import segment_softmax


def test_equals_a_loop_over_segments():
    rng = np.random.default_rng(0)
    segment = rng.integers(0, 5, 40)
    segment[segment == 3] = 1
    score = rng.normal(0, 30, (40, 2)).astype(np.float32)
    expected = np.zeros_like(score)
    for s in np.unique(segment):
        for h in range(2):
            e = np.exp(score[segment == s, h].astype(np.float64) - score[segment == s, h].max())
            expected[segment == s, h] = e / e.sum()
    np.testing.assert_allclose(segment_softmax(score, segment, 7), expected, atol=1e-6)


def test_gradient_is_that_of_softmax_and_finite_beside_empty_segments():
    score = np.array([[1.0], [500.0], [-500.0], [2.0]], np.float32)
    weight = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    got = jax.grad(lambda s: (segment_softmax(s, np.array([0, 4, 4, 0]), 6) * weight).sum())(score)
    expected = jax.grad(
        lambda s: (jax.nn.softmax(s[np.array([0, 3])], 0) * weight[np.array([0, 3])]).sum()
    )(score)
    np.testing.assert_allclose(got, expected, atol=1e-6)
