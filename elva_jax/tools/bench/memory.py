"""Peak memory of a run, beyond what was there before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """The most memory that `run` held at once, beyond what was held before it; None where this machine cannot tell.

    On a GPU: the allocator's high-water mark, which only rises; a run that stays below an earlier one cannot be told, so run small ones
    first. On a CPU under Linux: the process's resident high-water mark, which is reset.
    """
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats:
        before, mark = stats["bytes_in_use"], stats["peak_bytes_in_use"]
        jax.block_until_ready(run())
        peak = device.memory_stats()["peak_bytes_in_use"]
        return peak - before if peak > mark else None
    try:
        _CLEAR.write_text("5")  # resets VmHWM to what is resident now
    except OSError:
        return None
    before = _resident("VmRSS")
    jax.block_until_ready(run())
    return max(_resident("VmHWM") - before, 0)


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    return _resident("VmRSS")


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
