"""The guidance heads."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.models.guidance import GuidanceHeads
from elva_jax.parallel.sharding import check_collisions


def test_two_separate_linear_heads_and_the_temperature():
    rng = np.random.default_rng(0)
    hidden, frames = (
        rng.normal(size=(2, 9, 6)).astype(np.float32),
        rng.normal(size=(2, 3, 6)).astype(np.float32),
    )
    boxed = jax.jit(GuidanceHeads(5, temperature=0.2).init)(jax.random.key(0), hidden, frames)
    variables = nn.meta.unbox(boxed)
    params = variables["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "tube": {"kernel": (6, 5), "bias": (5,)},
        "frame": {"kernel": (6, 5), "bias": (5,)},
        "log_temperature": (),
    }
    out = jax.jit(GuidanceHeads(5).apply)(variables, hidden, frames)
    np.testing.assert_allclose(
        out.tube, hidden @ np.asarray(params["tube"]["kernel"]), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        out.frame, frames @ np.asarray(params["frame"]["kernel"]), rtol=1e-5, atol=1e-6
    )
    assert math.isclose(out.log_temperature, math.log(0.2), rel_tol=1e-6)
    for head in ("tube", "frame"):
        check_collisions(boxed["params"][head]["kernel"].names, head)

    half = jax.jit(GuidanceHeads(5, dtype="bfloat16").apply)(variables, hidden, frames)
    assert half.tube.dtype == half.frame.dtype == jnp.float32
    np.testing.assert_allclose(half.tube, out.tube, atol=0.1)
