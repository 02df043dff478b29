"""Features of videos from any frozen vision tower, for the guidance losses and for MERV.

    image tower    [n, T, H, W, 3] -> n * T images                -> [n, T, G, G, C]
    clip tower     [n, T, H, W, 3] -> n * T / num_frames clips    -> [n, T / tubelet, G, G, C]

Clips follow each other in time and are encoded apart: of 16 frames, a tower that sees 8 at once has
two. Images or clips take turns where their attention scores would not fit together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import VisionFeatures, to_pixels
from elva_jax.utils.arrays import AnyArray

# Attention scores of one layer that may exist at once for a video.
MOST_SCORES = 2**26


def tower_features(
    tower: Any, params: Any, frames: Num[AnyArray, "n T H W 3"]
) -> Float[Array, "n S G G C"]:
    """The features that `tower.config.features` names; no gradient flows through.

    Args:
      tower: a module of `models.build.TOWERS`.
      params: its parameters.
      frames: uint8 pixels of the tower's image size; black where a video has no frame.

    Returns:
      S = T / tubelet steps in time, each a grid of features in the tower's compute type.

    Raises:
      ConfigError: T frames that are not whole clips of the tower.
    """
    config: TeacherConfig = tower.config
    n, count, *size = frames.shape
    clip = config.num_frames
    if count % clip:
        raise ConfigError(
            f"a {config.kind} sees clips of {clip} frames, which {count} frames do not fill; change"
            " the number of frames, or num_frames of the tower"
        )
    one = size if clip == 1 else (clip, *size)

    def features(part: jax.Array) -> jax.Array:
        pixels = to_pixels(part).reshape(-1, *one)
        out: VisionFeatures = tower.apply({"params": params}, pixels)
        chosen = jax.lax.stop_gradient(getattr(out, config.features))
        side = math.isqrt(chosen.shape[-2])
        return chosen.reshape(n, -1, side, side, chosen.shape[-1])

    most = max(MOST_SCORES // _scores(config), 1)
    return _in_turns(features, jnp.asarray(frames), count // clip, most)


def _scores(config: TeacherConfig) -> int:
    """Attention scores of one layer for an image or clip, where they are not made in blocks."""
    if config.kind == "hiera":  # of its third stage, with half the heads on four times the patches
        return config.num_heads // 2 * (config.slots * 4 * config.grid**2) ** 2
    return config.num_heads * config.grid**4 * config.slots


def _in_turns(
    features: Callable[[jax.Array], jax.Array], frames: jax.Array, clips: int, most: int
) -> jax.Array:
    """`features` of `frames`, for at most `most` of the clips of each video at once."""
    turns = next(k for k in range(-(-clips // most), clips + 1) if clips % k == 0)
    if turns == 1:
        return features(frames)
    n, count, *size = frames.shape
    groups = frames.reshape(n, turns, count // turns, *size).swapaxes(0, 1)
    parts = jax.lax.map(features, groups).swapaxes(0, 1)
    return parts.reshape(n, -1, *parts.shape[3:])
