"""Hybrid resolution (paper, section 3.2): which of the sampled frames are read at high and which at low resolution."""

from __future__ import annotations

import numpy as np

from elva_jax.errors import ConfigError

POLICIES = ("interleave", "ends")


def hybrid(num_high: int, num_low: int, policy: str = "interleave") -> np.ndarray:
    """Says of each of T = num_high + num_low frames in temporal order whether it is a high-resolution one.

    Args:
      num_high: frames at high resolution.
      num_low: frames at low resolution.
      policy: 'interleave' spreads the high frames evenly over the video; 'ends' puts them at both ends (an odd one at the start).

    Returns:
      bool [T] with num_high True.

    Raises:
      ConfigError: a negative count, no frame at all, or an unknown policy.
    """
    if min(num_high, num_low) < 0 or num_high + num_low == 0:
        raise ConfigError(f"{num_high} high and {num_low} low frames: neither may be negative, nor both zero")
    total = num_high + num_low
    high = np.zeros(total, bool)
    if policy == "interleave":
        high[(2 * np.arange(num_high) + 1) * total // (2 * max(num_high, 1))] = True
    elif policy == "ends":
        high[: (num_high + 1) // 2] = True
        high[total - num_high // 2 :] = True
    else:
        raise ConfigError(f"unknown hybrid-resolution policy {policy!r}; one of {', '.join(POLICIES)}")
    return high
