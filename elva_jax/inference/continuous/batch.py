"""The running batch: which request has which slot, and shapes that follow the load."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from elva_jax.inference.continuous.grid import Grid, at_least
from elva_jax.inference.continuous.prefixes import PrefixEntry
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.readers import Readers
from elva_jax.inference.continuous.running import Running
from elva_jax.inference.continuous.slots import Fed, Slots

PATIENCE = 32  # dispatches for which smaller shapes must have sufficed before they are taken


class RunningBatch:
    """R slots on the device and the requests in them.

    Shapes grow as soon as requests need it and shrink when they have been too large for a while.

    Args:
      programs: what runs on the devices.
      grid: the shapes.
    """

    def __init__(self, programs: Programs, grid: Grid) -> None:
        self._programs, self._grid = programs, grid
        self._readers = Readers(programs, grid)
        self._slots: Slots | None = None
        self._requests: list[Running | None] = []
        self._capacity = 0
        self._idle_dispatches = 0
        self._dropped: list[int] = []

    @property
    def requests(self) -> list[Running]:
        """The running requests."""
        return [running for running in self._requests if running is not None]

    def join(self, joining: Mapping[int, Running], fed: Fed) -> None:
        """Gives slots to requests by their place in `fed`."""
        total = len(self.requests) + len(joining)
        self._resize(
            max(at_least(self._grid.counts, total), len(self._requests)),
            max(
                self._capacity,
                *(at_least(self._grid.capacities, r.needed) for r in joining.values()),
            ),
        )
        free = [slot for slot, held in enumerate(self._requests) if held is None]
        index = np.full(len(fed.slots.used), len(self._requests), np.int32)
        for (place, running), slot in zip(joining.items(), free, strict=False):
            index[place], self._requests[slot] = slot, running
        self._dropped = [slot for slot in self._dropped if self._requests[slot] is None]
        self._end_dropped()
        assert self._slots is not None
        self._slots = self._programs.put(self._slots, fed, index)
        self._readers.arrange(self._entries(), len(self._requests), afresh=False)

    def leave(self, running: Running, *, alive: bool) -> None:
        """Frees the slot of a request; one that is still alive ends before the next dispatch.

        The memory of the slots stays until `clear`, for those who ask next.
        """
        slot = self._requests.index(running)
        self._requests[slot] = None
        if alive:
            self._dropped.append(slot)

    def advance(self, steps: int) -> list[tuple[Running, list[int], bool, bool]]:
        """Decodes up to `steps` tokens of every request.

        Returns:
          of each request its new tokens, whether it continues, and whether it had an ending token.
        """
        self._shrink()
        self._end_dropped()
        assert self._slots is not None
        *found, self._slots = self._programs.advance(
            self._readers.layers, self._slots, self._readers.where(len(self._requests)), steps
        )
        out, alive, ended = map(np.asarray, found)
        return [
            (running, out[r][out[r] >= 0].tolist(), bool(alive[r]), bool(ended[r]))
            for r, running in enumerate(self._requests)
            if running is not None
        ]

    def clear(self) -> None:
        """Gives up all slots and their memory."""
        self._slots, self._requests, self._capacity = None, [], 0
        self._idle_dispatches, self._dropped = 0, []
        self._readers.clear()

    def _entries(self) -> dict[int, PrefixEntry]:
        return {
            slot: running.entry
            for slot, running in enumerate(self._requests)
            if running is not None and running.entry is not None
        }

    def _end_dropped(self) -> None:
        if self._dropped and self._slots is not None:
            kept = np.ones(len(self._requests), bool)
            kept[self._dropped] = False
            self._slots, self._dropped = self._programs.release(self._slots, kept), []

    def _resize(self, count: int, capacity: int) -> None:
        """Makes R and T what they should be; running slots keep their order.

        After a change of R the pool has to be arranged again.
        """
        if self._slots is None:
            self._slots = self._programs.empty_slots(count, capacity)
            self._requests, self._capacity = [None] * count, capacity
            return
        if count != len(self._requests):
            self._end_dropped()
            kept = [slot for slot, held in enumerate(self._requests) if held is not None]
            source = np.full(count, -1, np.int32)
            source[: len(kept)] = kept
            self._slots = self._programs.rearrange(self._slots, source, self._capacity)
            requests = self.requests
            self._requests = [*requests, *[None] * (count - len(requests))]
        if capacity != self._capacity:
            source = np.arange(count, dtype=np.int32)
            self._slots = self._programs.rearrange(self._slots, source, capacity)
            self._capacity = capacity

    def _shrink(self) -> None:
        requests = self.requests
        count = at_least(self._grid.counts, len(requests))
        entries = list(self._entries().values())
        if count == len(self._requests) and not self._readers.smaller(entries, count):
            self._idle_dispatches = 0
            return
        self._idle_dispatches += 1
        if self._idle_dispatches < PATIENCE:
            return
        self._idle_dispatches = 0
        self._resize(count, self._capacity)
        self._readers.arrange(self._entries(), count, afresh=True)
