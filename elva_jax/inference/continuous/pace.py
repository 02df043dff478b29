"""How many tokens a dispatch decodes: as many as fit into a given time."""

from __future__ import annotations

from collections import deque

from elva_jax.inference.continuous.slots import MOST_STEPS
from elva_jax.inference.prefilled import STOP_INTERVAL

RECENT = 8  # dispatches


class Pace:
    """Measures dispatches and sizes the next one.

    Args:
      seconds: how long a dispatch should take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._per_step: deque[float] = deque(maxlen=RECENT)

    def measure(self, seconds: float, steps: int) -> None:
        """Notes the time of a dispatch of so many steps."""
        self._per_step.append(seconds / max(steps, 1))

    def steps(self, *, stops: bool) -> int:
        """The number of tokens; `stops` says whether a stop string may end an answer."""
        # The fastest one counts: pauses of the machine must not make dispatches short, since a
        # short one costs the host as much as a long one.
        steps = int(self._seconds / min(self._per_step)) if self._per_step else MOST_STEPS
        return max(1, min(steps, STOP_INTERVAL if stops else MOST_STEPS))
