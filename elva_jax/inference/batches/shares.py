"""Many questions in shares, each asked by one process at a time.

    FOLDER/0003-of-0008/answers.jsonl      the journal of a share
                       .owner              the living process that asks it

A process begins with shares of its own, and continues with those that nobody owns: the rest of a
slow process, and what a killed one has left. Answered is what any journal holds, so that a later
start may divide the questions among another number of processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from elva_jax.errors import StartError
from elva_jax.inference.batches.journal import Head, Journal, Line, check_head, lines_from
from elva_jax.inference.batches.queries import Group
from elva_jax.parallel.lockstep import ALONE, Lockstep
from elva_jax.utils import owner

FILE = "answers.jsonl"
LEAST_BATCHES = 8  # of a share, so that its batches are full
MOST_SHARES = 8  # of each process
POLL_SECONDS = 0.05, 2.0  # from the first to the last pauses between looks at others' shares

T = TypeVar("T")
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some of the groups of a list of questions."""

    name: str
    groups: tuple[Group, ...]

    def rest(self, answered: Collection[str]) -> list[Group]:
        """The groups with the items whose keys are not answered."""
        rest = []
        for group in self.groups:
            left = tuple(item for item in group.items if item.key not in answered)
            if left:
                rest.append(Group(media=group.media, items=left))
        return rest


def divide(groups: Sequence[Group], processes: int, batch_size: int) -> list[Share]:
    """Divides groups evenly among shares: one per process, or several if there are many batches."""
    questions = sum(len(group.items) for group in groups)
    each = questions // (processes * batch_size * LEAST_BATCHES)
    count = max(min(processes * min(max(each, 1), MOST_SHARES), len(groups)), 1)
    return [
        Share(name=f"{index:04d}-of-{count:04d}", groups=tuple(groups[index::count]))
        for index in range(count)
    ]


def in_turn(shares: Sequence[Share], index: int, processes: int) -> list[Share]:
    """The shares in the order in which a process looks at them, beginning with its own."""
    first = index * len(shares) // processes
    return [*shares[first:], *shares[:first]]


class Journals(Generic[T]):
    """All journals of one list of questions.

    Args:
      folder: where they are.
      head: what they are of.
      read: the key of a line's question, and what is kept of its answer; KeyError, TypeError and
        ValueError mean that the line is damaged.
      lockstep: the processes of a mesh; the first one keeps the journals for all of them.
      stale: whether a line does not count any more, so that its question is asked again.
    """

    def __init__(
        self,
        folder: Path,
        head: Head,
        read: Callable[[Line], tuple[str, T]],
        lockstep: Lockstep = ALONE,
        stale: Callable[[Line], bool] = lambda _: False,
    ) -> None:
        self._folder, self._head, self._read = folder, head, read
        self._lockstep, self._stale = lockstep, stale
        self._next: dict[Path, tuple[int, int]] = {}  # byte and number of the next line
        self._found: dict[str, T] = {}

    def load(self) -> dict[str, T]:
        """The kept parts of all answers, by key; the first one of each counts.

        Only what is new since the last call is read.

        Raises:
          DataError: a journal of another model, list or setting, or a damaged one.
        """
        for line in self._lines():
            try:
                key, kept = self._read(line)
            except (KeyError, TypeError, ValueError):
                raise line.damaged("not a response") from None
            self._found.setdefault(key, kept)
        return self._found

    def _lines(self) -> Iterable[Line]:
        """The lines that are new since the last call, in every process of the mesh."""
        if self._lockstep.alone:
            return self._new_lines()
        found = self._lockstep.from_first(
            lambda: [{**vars(line), "path": str(line.path)} for line in self._new_lines()]
        )
        return [Line(**{**fields, "path": Path(fields["path"])}) for fields in found]

    def _new_lines(self) -> Iterator[Line]:
        for path in sorted(self._folder.glob(f"*/{FILE}")):
            if path not in self._next:
                if not (start := check_head(path, self._head)):
                    continue
                self._next[path] = start, 2
            for line, following in lines_from(path, *self._next[path]):
                if not self._stale(line):
                    yield line
                self._next[path] = following, line.number + 1

    @contextlib.contextmanager
    def own(self, share: Share) -> Iterator[tuple[Journal | None, dict[str, T]] | None]:
        """A share's journal and all answers so far; None if a living process owns the share.

        Of the processes of a mesh only the first one has the journal.
        """
        folder, first = self._folder / share.name, self._lockstep.first
        with contextlib.ExitStack() as stack:
            owned = first and _owned(folder, stack)
            if not self._lockstep.from_first(lambda: owned):
                yield None
                return
            answered, opened = self.load(), None
            if first:
                opened = Journal(folder / FILE, self._head)
                stack.callback(opened.close)
            yield opened, answered


def _owned(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Owns a folder as long as the stack, unless a living process does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(owner.own(folder))
    except StartError:
        return False
    return True


class Work(Generic[T]):
    """A list of questions that processes share.

    Args:
      journals: where the answers go.
      shares: all of it, in the order in which this process looks at them.
      ask: the records of all items of some groups, some at a time.
      progress: called with the number of answered items after each step.

    Attributes:
      keys: of all items.
      seconds: wall-clock time that this process has spent on it.
    """

    def __init__(
        self,
        journals: Journals[T],
        shares: Sequence[Share],
        ask: Callable[[Sequence[Group]], Iterator[Records]],
        progress: Callable[[int], None],
    ) -> None:
        self.journals, self._shares = journals, shares
        self._ask, self._progress = ask, progress
        self.keys = {i.key for share in shares for group in share.groups for i in group.items}
        self.seconds = 0.0

    def turn(self) -> bool:
        """Asks the shares that no living process owns; False if some were owned by others."""
        start, free = time.monotonic(), True
        for share in self._shares:
            if share.rest(self.journals.load()):
                free &= self._ask_share(share)
        self.seconds += time.monotonic() - start
        return free

    def _ask_share(self, share: Share) -> bool:
        with self.journals.own(share) as owned:
            if owned is None:
                return False
            journal, answered = owned
            done = len(self.keys & answered.keys())
            for records in self._ask(share.rest(answered)):
                if journal is not None:
                    journal.append(records)
                done += len(records)
                self._progress(done)
        return True


def work_through(works: Sequence[Work[Any]]) -> None:
    """Asks whatever no living process asks, until everything is answered."""
    pause, longest = POLL_SECONDS
    while True:
        free = [work.turn() for work in works]
        if all(work.keys <= work.journals.load().keys() for work in works):
            return
        if not all(free):
            time.sleep(pause)
            pause = min(2 * pause, longest)
