"""Timing of alternatives beside one another, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Spread(NamedTuple):
    """Seconds of several runs."""

    median: float
    least: float
    most: float


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Spread]:
    """Runs every alternative once to compile it and warm it up, then all of them in turn, `repeats` times.

    An alternative has run when everything that it returns is there.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Spread(float(np.median(values)), min(values), max(values))
        for name, values in seconds.items()
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }


def milliseconds(spread: Spread) -> str:
    """The median, and the least and the most in brackets."""
    return f"{1e3 * spread.median:.1f} ({1e3 * spread.least:.1f}-{1e3 * spread.most:.1f})"
