"""The questions of a benchmark in shares, each asked by one process at a time.

    OUTPUT/videomme/answers/0003-of-0008/answers.jsonl      the journal of a share
                                         .owner             the living process that asks it

A process begins with shares of its own, and continues with those that nobody owns: the rest of a
slow process, and what a killed one has left. Answered is what any journal holds, so that a later
start may divide the questions among another number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva_jax.errors import StartError
from elva_jax.evaluation.benchmarks.base import Question, Response
from elva_jax.evaluation.runner import journal
from elva_jax.evaluation.runner.identity import question_hash
from elva_jax.inference.batches.queries import Group
from elva_jax.utils import owner

FOLDER, FILE = "answers", "answers.jsonl"
LEAST_BATCHES = 8  # of a share, so that its batches are full
MOST_SHARES = 8  # of each process


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some of the groups of a benchmark."""

    name: str
    groups: tuple[Group, ...]


def divide(groups: Sequence[Group], processes: int, batch_size: int) -> list[Share]:
    """Divides groups evenly among shares: one per process, or several if there are many batches."""
    questions = sum(len(group.items) for group in groups)
    each = questions // (processes * batch_size * LEAST_BATCHES)
    count = max(min(processes * min(max(each, 1), MOST_SHARES), len(groups)), 1)
    return [
        Share(name=f"{index:04d}-of-{count:04d}", groups=tuple(groups[index::count]))
        for index in range(count)
    ]


class Answers:
    """All journals of one benchmark.

    Args:
      folder: the benchmark's part of the output folder.
      benchmark: its name.
      settings: what its answers depend on.
      questions: all of its questions.
    """

    def __init__(
        self,
        folder: Path,
        benchmark: str,
        settings: Mapping[str, Any],
        questions: Sequence[Question],
    ) -> None:
        self._folder = folder / FOLDER
        self._head = journal.make_head(benchmark, settings)
        self._questions = {q.key: (q, question_hash(q)) for q in questions}

    def load(self) -> dict[str, Response]:
        """The responses of all journals, by key of the question.

        Raises:
          DataError: a journal of another model, benchmark or setting, or a damaged one.
        """
        found: dict[str, Response] = {}
        for path in sorted(self._folder.glob(f"*/{FILE}")):
            found = journal.load(path, self._head, self._questions) | found
        return found

    @contextlib.contextmanager
    def own(self, share: Share) -> Iterator[tuple[journal.Journal, dict[str, Response]] | None]:
        """A share's journal and all responses so far; None if a living process owns the share."""
        folder = self._folder / share.name
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(owner.own(folder))
            except StartError:
                yield None
                return
            answered = self.load()
            opened = journal.Journal(folder / FILE, self._head)
            stack.callback(opened.close)
            yield opened, answered


def in_turn(shares: Sequence[Share], index: int, processes: int) -> list[Share]:
    """The shares in the order in which a process looks at them, beginning with its own."""
    first = index * len(shares) // processes
    return [*shares[first:], *shares[:first]]
