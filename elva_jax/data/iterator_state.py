"""A process's position in the data, also after the number of processes has changed.

The data form endless streams, one for each process that the stage was started with. A position
(stream, index) determines a record and all random choices about it, whichever process reads it.
Each change of the number of processes appends to the history how far each of the N old processes
had read in its own order. The remaining elements are numbered in turn over the old processes:
element n is element position + n // N in the order of old process n mod N. Process m of the M new
ones reads the elements n with n = m (mod M):

    two processes stopped at 3 and 1:   stream 0: . . . 3 4 5 ...     stream 1: . 1 2 3 ...
    three processes continue:           m=0: (0,3) (1,2) ...   m=1: (1,1) (0,5) ...   m=2: (0,4) ...

The order is a pure function of a few numbers, so no example is read twice or left out.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# For each earlier number of processes, oldest first: the positions that the processes had reached.
ReshardHistory = Sequence[Sequence[int]]


class StreamPosition(NamedTuple):
    """One element of the streams of the processes that the stage was started with."""

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
    """The positions that a process still has to read: those to replay, then its endless order.

    Args:
      replay: positions of samples that waited to be packed when the state was saved.
      history: positions at each earlier change of the number of processes.
      process_index: index of the process.
      process_count: number of processes.
      position: number of elements of its order that the process has read.
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
    """The positions of the waiting samples of a saved state.

    The oldest checkpoints store plain indices into the process's own stream.
    """
    return [
        StreamPosition(process_index, entry) if isinstance(entry, int) else StreamPosition(*entry)
        for entry in waiting
    ]


def redistribute(
    states: Sequence[dict[str, Any]], process_index: int, process_count: int
) -> dict[str, Any]:
    """The state from which a process continues after the number of processes has changed.

    Args:
      states: `BatchIterator.get_state()` of all processes of the checkpoint, in order.
      process_index: index of the process that continues.
      process_count: the new number of processes.

    Returns:
      The process's own state if the number is unchanged. Otherwise its share of the remaining and
      waiting examples and of the counters; the sums over all processes are unchanged.
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
    """Number of the units start … stop-1 that a process gets if they are assigned in turn."""
    return len(range(start + (process_index - start) % process_count, stop, process_count))


def _share_reasons(
    states: Sequence[dict[str, Any]], process_index: int, process_count: int
) -> tuple[dict[str, int], dict[str, str]]:
    """A process's share of the number of dropped records by reason, and the first of each reason.

    The totals of any two processes differ by at most one.
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
