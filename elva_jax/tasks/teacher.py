"""The features of the frozen teacher that the guidance losses read."""

from __future__ import annotations

from typing import Any

import jax

from elva_jax.models.towers.common import to_pixels

# Attention scores of one teacher layer that may exist at once for a row; more frames take turns.
TEACHER_SCORES = 2**26


def teacher_features(teacher: Any, params: Any, frames_BxFxHxWx3: jax.Array) -> jax.Array:
    """Penultimate features [B, F, G, G, C] of uint8 frames; no gradient flows through.

    Slots without a frame hold the features of black.
    """
    b, f, *size = frames_BxFxHxWx3.shape
    side, heads = teacher.config.grid, teacher.config.num_heads
    most = max(TEACHER_SCORES // (heads * side**4), 1)
    count = next(n for n in range(-(-f // most), f + 1) if f % n == 0)

    def features(frames_BxNxHxWx3: jax.Array) -> jax.Array:
        pixels = to_pixels(frames_BxNxHxWx3).reshape(-1, *size)
        features_MxPxC = jax.lax.stop_gradient(
            teacher.apply({"params": params}, pixels).penultimate
        )
        return features_MxPxC.reshape(b, -1, side, side, features_MxPxC.shape[-1])

    if count == 1:
        return features(frames_BxFxHxWx3)
    groups = frames_BxFxHxWx3.reshape(b, count, f // count, *size).swapaxes(0, 1)
    parts = jax.lax.map(features, groups)
    return parts.swapaxes(0, 1).reshape(b, f, side, side, -1)
