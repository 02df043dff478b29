"""Interleaved timing of alternatives, so that other load on the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict


class Spread(TypedDict):
    """Seconds of several runs, as they are reported in JSON."""

    median: float
    least: float
    most: float


def spread(seconds: Sequence[float]) -> Spread:
    """Summarizes the seconds of several runs."""
    return Spread(median=statistics.median(seconds), least=min(seconds), most=max(seconds))


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Spread]:
    """Times the alternatives in turn, `repeats` times, after one run of each to compile it.

    A run ends when all arrays that it returns are ready.
    """
    import jax

    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: spread(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """The device and JAX version of a measurement."""
    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }


def milliseconds(seconds: Spread) -> str:
    """The median, with the range in parentheses."""
    median, least, most = (1e3 * seconds[name] for name in ("median", "least", "most"))
    return f"{median:.1f} ({least:.1f}-{most:.1f})"
