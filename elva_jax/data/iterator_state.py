"""Where a process stands in the data, and how the rest is dealt out when a run goes on with another number of processes.

The data are endless streams, one for each process that the stage was started with. A place (stream, index) in them names a record and
all random choices about it, whoever reads it. Every change of the number of processes adds a deal: a list of where each process stood, in
its own reading order. Behind a deal of N positions, element n of what is left is the next one of process n mod N at its position + n // N,
and the processes of today, M of them, read the elements n = m (mod M) each. So every order is a pure function of small lists of numbers,
and no example is read twice or left out.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

Deals = Sequence[Sequence[int]]  # oldest first: one position for each process of that time


class Place(NamedTuple):
    """One element of the streams of the first processes."""

    stream: int
    index: int


def trace(deals: Deals, process_count: int, process: int, position: int) -> Place:
    """The place of element `position` of a process's reading order."""
    for positions in reversed(deals):
        n = process + position * process_count
        process_count = len(positions)
        process, ahead = n % process_count, n // process_count
        position = positions[process] + ahead
    return Place(process, position)


class Reading(Sequence[Place]):
    """The places that a process still has to read: those that waited to be packed, then the rest of its order without end.

    Args:
      waiting: places read before, to be read again.
      deals: what the numbers of processes were before.
      process_index: which process reads.
      process_count: of how many.
      position: how much of its order it has read.
    """

    def __init__(
        self,
        waiting: Sequence[Place],
        deals: Deals,
        process_index: int,
        process_count: int,
        position: int,
    ):
        self._waiting = list(waiting)
        self._deals = deals
        self._process_index = process_index
        self._process_count = process_count
        self._position = position

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Place:
        if index < len(self._waiting):
            return self._waiting[index]
        return trace(
            self._deals,
            self._process_count,
            self._process_index,
            self._position + index - len(self._waiting),
        )


def places(waiting: Sequence[int | Sequence[int]], process_index: int) -> list[Place]:
    """The waiting places of a saved state; the oldest checkpoints have numbers alone, which are of the process's own stream."""
    return [
        Place(process_index, entry) if isinstance(entry, int) else Place(*entry)
        for entry in waiting
    ]


def redistribute(
    states: Sequence[dict[str, Any]], process_index: int, process_count: int
) -> dict[str, Any]:
    """The state with which one of `process_count` processes goes on from where others stopped.

    Args:
      states: `BatchIterator.get_state()` of all processes of the checkpoint, in their order.
      process_index: which of the processes goes on.
      process_count: how many there are now.

    Returns:
      that process's own state where their number is the same; otherwise its share of what is left, of the waiting examples and of the
      counters, which add up over the processes to what they were.
    """
    if len(states) == process_count:
        return states[process_index]
    waiting = [
        place for process, state in enumerate(states) for place in places(state["waiting"], process)
    ]
    reasons, first = _share_reasons(states, process_index, process_count)
    return {
        "position": 0,
        "waiting": [list(place) for place in waiting[process_index::process_count]],
        "deals": [*states[0].get("deals", []), [state["position"] for state in states]],
        "seen": _share(0, sum(state["seen"] for state in states), process_index, process_count),
        "reasons": reasons,
        "first": first,
        "settings": states[0]["settings"]
        | {"process_index": process_index, "process_count": process_count},
    }


def _share(start: int, stop: int, process_index: int, process_count: int) -> int:
    """How many of the units start … stop-1 fall to one process, when they are dealt out in turn."""
    return len(range(start + (process_index - start) % process_count, stop, process_count))


def _share_reasons(
    states: Sequence[dict[str, Any]], process_index: int, process_count: int
) -> tuple[dict[str, int], dict[str, str]]:
    """One process's share of the dropped records by reason, as even in all as whole records allow, and the first record of each reason."""
    names = dict.fromkeys(itertools.chain.from_iterable(state["reasons"] for state in states))
    counts = [sum(state["reasons"].get(name, 0) for state in states) for name in names]
    stops = list(itertools.accumulate(counts))
    reasons, first = {}, {}
    for name, count, stop in zip(names, counts, stops, strict=True):
        share = _share(stop - count, stop, process_index, process_count)
        if share:
            reasons[name] = share
            first[name] = next(state["first"][name] for state in states if name in state["first"])
    return reasons, first
