"""Directions of feature vectors, which contrastive losses compare."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    """Divides by the norm over the last axis; zero vectors stay zero, with finite gradients."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
