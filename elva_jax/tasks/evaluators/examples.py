"""The held-out examples of a stage: which ones they are, and how processes share them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import jax

from elva_jax.config.schema import SourceConfig
from elva_jax.data.example import Example
from elva_jax.data.mixture import Mixture
from elva_jax.data.safe_read import Rejected, read_safely
from elva_jax.data.sources import check_files
from elva_jax.errors import DataError
from elva_jax.parallel.collectives import all_gather_json
from elva_jax.training.task import Task

READERS = 4  # threads that decode
CACHE_BYTES = 2**30  # of batches that stay in memory between evaluations; more are read again


class HasArrays(Protocol):
    """A batch of one process."""

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays of a batch of the stage, and the numbers of its rows."""


BatchT = TypeVar("BatchT", bound=HasArrays)
FoundT = TypeVar("FoundT")


class HeldOutExamples(ABC, Generic[BatchT]):
    """One process's share of the held-out examples, the same batches at every evaluation.

    Args:
      task: of the stage.

    Attributes:
      rejected: the examples that cannot be read, after the first pass.

    Raises:
      DataError: the data is missing or malformed.
    """

    def __init__(self, task: Task):
        self._process, self._processes = jax.process_index(), jax.process_count()
        settings, stage, name = task.stage.eval, task.stage, task.name
        mixture = settings.mixture or own_sources(stage.data.mixture, settings.split)
        check_files(mixture, task.config.data_root, f"stages.{name}.eval.mixture")
        data = dataclasses.replace(
            stage.data, mixture=mixture, temperature=0.0, num_low_frames=0, hybrid_probability=0.0
        )
        self._name, self._stage = name, dataclasses.replace(stage, data=data)
        stages = {**task.config.stages, name: self._stage}
        self._config = dataclasses.replace(task.config, stages=stages)
        self._mixture = Mixture(self._config, name)
        self._rows = stage.batch_size // stage.optimizer.accumulate // self._processes
        self._examples = settings.examples
        self._cache: list[BatchT] | None = None
        self.rejected: list[Rejected] = []

    @abstractmethod
    def padding(self) -> BatchT:
        """A batch without any example, for a process that has no more than these."""

    @abstractmethod
    def _make_batches(self) -> Iterator[BatchT]:
        """Decodes this process's examples and collates them."""

    def batches(self) -> Generator[BatchT]:
        """The batches of this process; those of an earlier pass, if they are still in memory."""
        if self._cache is not None:
            yield from self._cache
            return
        kept: list[BatchT] = []
        self.rejected, size = [], 0
        for batch in self._make_batches():
            size += sum(leaf.nbytes for leaf in jax.tree.leaves(batch.arrays))
            kept = [*kept, batch] if size <= CACHE_BYTES else []
            yield batch
        self._cache = kept if size <= CACHE_BYTES else None

    def of_all_processes(self, stop: Callable[[], bool]) -> Iterator[BatchT | None]:
        """This process's batches, then padding as long as another has some; None: stop."""
        with contextlib.closing(self.batches()) as mine:
            while True:
                batch = next(mine, None)
                state = all_gather_json({"rows": batch is not None, "stop": stop()})
                if any(process["stop"] for process in state):
                    yield None
                if not any(process["rows"] for process in state):
                    return
                yield self.padding() if batch is None else batch

    def unreadable(self, used: int, otherwise: str) -> int:
        """How many examples of all processes cannot be read.

        Args:
          used: number of answers or pairs that were measured.
          otherwise: why there are none, if not because of such examples.

        Raises:
          DataError: nothing was measured.
        """
        found = all_gather_json([[bad.key, bad.reason] for bad in self.rejected])
        unreadable = [bad for process in found for bad in process]
        if not used:
            first = ": ".join(unreadable[0]) if unreadable else otherwise
            raise DataError(
                f"stages.{self._name}.eval: none of its {len(unreadable)} examples can be used"
                f" ({first})"
            )
        return len(unreadable)

    def _read(
        self, prepare: Callable[[int, Example], FoundT], time_limit: float
    ) -> Iterator[FoundT]:
        """This process's examples in order, prepared a few at a time, by their numbers."""
        chosen = enumerate(in_turn(self._mixture.lengths, self._examples))
        mine = itertools.islice(chosen, self._process, None, self._processes)

        def read(item: tuple[int, tuple[int, int]]) -> FoundT | Rejected:
            number, position = item
            return read_safely(
                self._mixture.key(*position),
                time_limit,
                lambda: self._mixture.example(*position),
                lambda example: prepare(number, example),
                " (data.time_limit)",
            )

        with ThreadPoolExecutor(READERS) as pool:
            while group := list(itertools.islice(mine, 2 * READERS)):
                for found in pool.map(read, group):
                    if isinstance(found, Rejected):
                        self.rejected.append(found)
                    else:
                        yield found


def own_sources(mixture: Mapping[str, SourceConfig], split: str) -> dict[str, SourceConfig]:
    """The sources of a stage with another split, each data set once."""
    found: dict[SourceConfig, str] = {}
    for label, source in mixture.items():
        found.setdefault(dataclasses.replace(source, split=split, weight=1.0, epochs=1.0), label)
    return {label: source for source, label in found.items()}


def in_turn(lengths: Sequence[int], most: int) -> Iterable[tuple[int, int]]:
    """At most `most` positions (source, index): the first ones of the sources in turn."""
    everything = (
        (source, index)
        for index in range(max(lengths))
        for source, length in enumerate(lengths)
        if index < length
    )
    return itertools.islice(everything, most)
