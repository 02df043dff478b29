"""A trace of some steps, for TensorBoard's or XProf's trace viewer."""

from __future__ import annotations

from pathlib import Path

import jax


class Profile:
    """Traces steps first … last of a process, counted from 1 where this start goes on; of several processes the first alone.

    Args:
      folder: where the trace goes.
      steps: (first, last), or None for no trace.

    Attributes:
      folder: as given.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder = folder
        self._first, self._last = steps if steps and jax.process_index() == 0 else (0, 0)
        self._count = 0
        self._tracing = False

    def before(self) -> None:
        """A step begins."""
        self._count += 1
        if self._count == self._first:
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True

    def after(self, metrics) -> bool:
        """A step, whose metrics are given, has been handed over; whether the trace is complete now."""
        if not (self._tracing and self._count == self._last):
            return False
        jax.block_until_ready(metrics)
        self.close()
        return True

    def close(self) -> None:
        """Writes what there is."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
