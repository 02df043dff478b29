"""Reductions over ragged segments that jax.ops does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def segment_softmax(score_MxH: jax.Array, segment_M: jax.Array, num_segments: int) -> jax.Array:
    """Softmax over the entries that share a segment, for every head apart; float32 [M, H].

    Args:
      score_MxH: one score an entry and head.
      segment_M: int32, the segment of each entry, in [0, num_segments); entries need no order.
      num_segments: static count.
    """
    score_MxH = score_MxH.astype(jnp.float32)
    # The maximum only guards the exponential: it needs no gradient.
    highest = jax.ops.segment_max(jax.lax.stop_gradient(score_MxH), segment_M, num_segments)
    exponential = jnp.exp(score_MxH - highest[segment_M])
    total = jax.ops.segment_sum(exponential, segment_M, num_segments)
    return exponential / total[segment_M]
