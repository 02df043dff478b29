"""Peak memory of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """The most memory that `run` needs beyond what was in use before; None if unknown.

    On a GPU, this is the allocator's high-water mark. It only rises, and a run below the mark of an
    earlier one has an unknown peak, so small runs must come first. On a CPU under Linux, it is the
    resident high-water mark of the process, which can be reset.
    """
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats:
        before, mark = stats["bytes_in_use"], stats["peak_bytes_in_use"]
        jax.block_until_ready(run())
        peak = device.memory_stats()["peak_bytes_in_use"]
        return peak - before if peak > mark else None
    try:
        _CLEAR.write_text("5")  # resets VmHWM to the resident memory
    except OSError:
        return None
    before = _resident("VmRSS")
    jax.block_until_ready(run())
    return max(_resident("VmHWM") - before, 0)


def resident_bytes() -> int:
    """The resident memory of this process (Linux)."""
    return _resident("VmRSS")


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
