"""The requests that wait for a slot."""

from __future__ import annotations

from collections import deque

from elva_jax.inference.continuous.running import Running


class Waiting:
    """Requests in the order in which they get a slot; its user holds a lock.

    Those that have run and have to join again come first.
    """

    def __init__(self) -> None:
        self._again: deque[Running] = deque()
        self._new: deque[Running] = deque()

    def __len__(self) -> int:
        return len(self._again) + len(self._new)

    @property
    def new(self) -> int:
        """The number of requests that have not run yet."""
        return len(self._new)

    def add(self, running: Running) -> None:
        """Adds a new request."""
        self._new.append(running)

    def add_again(self, running: Running) -> None:
        """Adds a request that has run."""
        self._again.append(running)

    def take(self, most: int | None = None) -> list[Running]:
        """Removes the next requests; None: all."""
        count = len(self) if most is None else min(most, len(self))
        return [(self._again or self._new).popleft() for _ in range(count)]

    def take_cancelled(self) -> list[Running]:
        """Removes the requests whose clients are gone."""
        gone = []
        for some in (self._again, self._new):
            gone += [running for running in some if running.ticket.cancelled]
            kept = [running for running in some if not running.ticket.cancelled]
            some.clear()
            some.extend(kept)
        return gone
