"""A process's position in the data, also after the number of processes has changed.

The data are endless streams, one for each process that the stage was started with. A position
(stream, index) names a record and all random choices about it, whichever process reads it. Each
change of the number of processes adds an entry to the history: how far each of the N processes had
read in its own order. Of what was left then, element n is the next one of old process n mod N, at
its position + n // N, and each of today's M processes reads the elements n = m (mod M):

    two processes stopped at 3 and 1:   stream 0: . . . 3 4 5 ...     stream 1: . 1 2 3 ...
    three processes continue:           m=0: (0,3) (1,2) ...   m=1: (1,1) (0,5) ...   m=2: (0,4) ...

So every order is a pure function of small lists of numbers: no example is read twice or left out.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

ReshardHistory = Sequence[
    Sequence[int]
]  # oldest first: the positions of the processes of that time


class StreamPosition(NamedTuple):
    """One element of the first processes' streams."""

    stream: int
    index: int  # type: ignore[assignment]  # hides tuple.index


def trace(
    history: ReshardHistory, process_count: int, process: int, position: int
) -> StreamPosition:
    """The stream position of element `position` of a process's reading order."""
    for positions in reversed(history):
        n = process + position * process_count
        process_count = len(positions)
        process, ahead = n % process_count, n // process_count
        position = positions[process] + ahead
    return StreamPosition(process, position)


class RemainingPositions(Sequence[StreamPosition]):
    """The positions that a process still has to read: those to replay, then its order without end.

    Args:
      replay: positions of samples that waited to be packed when the state was saved.
      history: earlier numbers of processes.
      process_index: the process.
      process_count: number of processes.
      position: how much of its order it has read.
    """

    def __init__(
        self,
        replay: Iterable[StreamPosition],
        history: ReshardHistory,
        process_index: int,
        process_count: int,
        position: int,
    ):
        self._replay = list(replay)
        self._history = history
        self._process_index = process_index
        self._process_count = process_count
        self._position = position

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> StreamPosition:  # type: ignore[override]  # no slices
        if index < len(self._replay):
            return self._replay[index]
        position = self._position + index - len(self._replay)
        return trace(self._history, self._process_count, self._process_index, position)


def saved_positions(
    waiting: Sequence[int | Sequence[int]], process_index: int
) -> list[StreamPosition]:
    """The waiting positions of a saved state.

    The oldest checkpoints have indices into the process's own stream.
    """
    return [
        StreamPosition(process_index, entry) if isinstance(entry, int) else StreamPosition(*entry)
        for entry in waiting
    ]


def redistribute(
    states: Sequence[dict[str, Any]], process_index: int, process_count: int
) -> dict[str, Any]:
    """The state from which one of `process_count` processes continues where others stopped.

    Args:
      states: `BatchIterator.get_state()` of all processes of the checkpoint, in their order.
      process_index: the process that continues.
      process_count: number of processes now.

    Returns:
      The process's own state where their number is the same; otherwise its share of the remaining
      and the waiting examples and of the counters, which add up over the processes to what they
      were.
    """
    if len(states) == process_count:
        return states[process_index]
    waiting = [
        position
        for process, state in enumerate(states)
        for position in saved_positions(state["waiting"], process)
    ]
    reasons, first = _share_reasons(states, process_index, process_count)
    return {
        "position": 0,
        "waiting": [list(position) for position in waiting[process_index::process_count]],
        "deals": [*states[0].get("deals", []), [state["position"] for state in states]],
        "seen": _share(0, sum(state["seen"] for state in states), process_index, process_count),
        "reasons": reasons,
        "first": first,
        "settings": states[0]["settings"]
        | {"process_index": process_index, "process_count": process_count},
    }


def _share(start: int, stop: int, process_index: int, process_count: int) -> int:
    """How many of the units start … stop-1 one process gets when they are dealt out in turn."""
    return len(range(start + (process_index - start) % process_count, stop, process_count))


def _share_reasons(
    states: Sequence[dict[str, Any]], process_index: int, process_count: int
) -> tuple[dict[str, int], dict[str, str]]:
    """One process's share of the dropped records by reason, and the first record of each reason.

    The shares of all processes are as even in total as whole records allow.
    """
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
