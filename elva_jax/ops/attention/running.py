"""A running softmax over tiles of keys: attention whose memory is that of one tile.

Scores s of a tile of keys join what is known of those before it, with m the highest score so far:

    m' = max(m, max s)    sum' = sum e^(m - m') + sum_t e^(s_t - m')
                          value' = value e^(m - m') + sum_t e^(s_t - m') v_t

The attended values are value / sum at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from elva_jax.ops.attention.blocked import LOWEST


class Running(NamedTuple):
    """Attention to the keys so far."""

    highest: Float32[Array, "*N R 1"]
    total: Float32[Array, "*N R 1"]
    value: Float32[Array, "*N R Dh"]

    @property
    def attended(self) -> Float32[Array, "*N R Dh"]:
        """The attended values."""
        return self.value / self.total


def nothing(*shape: int) -> Running:
    """No keys yet, for values of `shape`."""
    column = (*shape[:-1], 1)
    return Running(jnp.full(column, LOWEST), jnp.zeros(column), jnp.zeros(shape))


def add_keys(
    running: Running, score: Float32[Array, "*N R T"], v: Float[Array, "*N T Dh"]
) -> Running:
    """Attends to T more keys as well.

    Scores of keys that are not attended to must be LOWEST. What a query without any key so far
    holds counts for nothing once it has one.
    """
    highest, total, value = running
    new = jnp.maximum(highest, jnp.max(score, axis=-1, keepdims=True))
    fade, weight = jnp.exp(highest - new), jnp.exp(score - new)
    part = jnp.einsum(
        "...rt,...td->...rd", weight.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    total = total * fade + jnp.sum(weight, axis=-1, keepdims=True)
    return Running(new, total, value * fade + part)
