"""Cosine similarity of tokens, as merging compares them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from elva_jax.utils.arrays import AnyArray


def similarity(x: Float[AnyArray, "S D"], other: Int[Array, " S"]) -> Float32[Array, " S"]:
    """Cosine of every token with token `other`, without gradient; 0 where either is all zeros."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    norm_S = _norm(x)
    return _cosine(jnp.sum(x * x[other], axis=-1), norm_S * norm_S[other])


def similarity_of(
    x: Float[AnyArray, "*S D"], other: Float[AnyArray, "*S D"]
) -> Float32[Array, "*S"]:
    """Cosine of each token of `x` with the one at its place in `other`, as `similarity`."""
    x, other = x.astype(jnp.float32), other.astype(jnp.float32)
    return _cosine(jnp.sum(x * other, axis=-1), _norm(x) * _norm(other))


def _norm(x: Float32[AnyArray, "*S D"]) -> Float32[Array, "*S"]:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1))


def _cosine(dot: Float32[Array, "*S"], scale: Float32[Array, "*S"]) -> Float32[Array, "*S"]:
    return jnp.where(scale == 0, 0.0, dot / jnp.where(scale == 0, 1.0, scale))
