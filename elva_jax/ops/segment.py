"""Reductions over ragged segments that jax.ops does not have.

segment   0    0    1    0    2    1           entries need no order
score     a    b    c    d    e    f
softmax   over {a, b, d}, over {c, f} and over {e}
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from elva_jax.utils.arrays import AnyArray


def segment_softmax(
    score: Float[AnyArray, "M H"], segment: Int[AnyArray, " M"], num_segments: int
) -> Float32[Array, "M H"]:
    """Softmax over the entries that share a segment, separately for every head.

    Args:
      score: one score per entry and head.
      segment: the segment of each entry, in [0, num_segments).
      num_segments: static count.
    """
    score = score.astype(jnp.float32)
    # The maximum only keeps exp from overflowing and cancels out, so it needs no gradient.
    highest = jax.ops.segment_max(jax.lax.stop_gradient(score), segment, num_segments)
    exponential = jnp.exp(score - highest[segment])
    total = jax.ops.segment_sum(exponential, segment, num_segments)
    return exponential / total[segment]
