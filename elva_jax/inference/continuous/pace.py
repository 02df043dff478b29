"""How many tokens a dispatch decodes: as many as fit into a given time."""

from __future__ import annotations

from elva_jax.inference.continuous.slots import MOST_STEPS
from elva_jax.inference.prefilled import STOP_INTERVAL


class Pace:
    """Measures dispatches and sizes the next one.

    Args:
      seconds: how long a dispatch should take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._per_step = seconds, 0.0

    def measure(self, seconds: float, steps: int) -> None:
        """Notes the time of a dispatch of so many steps."""
        measured = seconds / max(steps, 1)
        # Bounded, because a pause of the machine must not make the next dispatches short.
        self._per_step = min(measured, 2 * (self._per_step or measured))

    def steps(self, *, stops: bool) -> int:
        """The number of tokens; `stops` says whether a stop string may end an answer."""
        steps = int(self._seconds / self._per_step) if self._per_step else MOST_STEPS
        return max(1, min(steps, STOP_INTERVAL if stops else MOST_STEPS))
