"""Directions of feature vectors, which contrastive losses compare."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from elva_jax.utils.arrays import AnyArray


def l2_normalize(x: Float[AnyArray, "*batch C"]) -> Float[Array, "*batch C"]:
    """Divides by the norm over the last axis; zero vectors stay zero, with finite gradients."""
    x = jnp.asarray(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
