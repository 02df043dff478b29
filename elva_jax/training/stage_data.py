"""The protocols of a stage's data: what it trains on, and what it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from elva_jax.training.setup import TrainSetup


class Batches(Protocol):
    """Endless batches of one process, whose position can be saved."""

    @property
    def stats(self) -> Mapping[str, float]:
        """Numbers about the last batch, which are reported as metrics of its step."""

    @property
    def dropped(self) -> int:
        """Number of records dropped so far."""

    @property
    def examples_per_epoch(self) -> int:
        """Number of examples in one epoch, over all processes."""

    @property
    def fingerprint(self) -> Any:
        """The data and their order, as JSON that is the same in all processes."""

    def __next__(self) -> Mapping[str, Any]:
        """The rows of the next batch that this process reads."""

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch, as JSON."""

    def resume(self, states: Sequence[dict[str, Any]]) -> None:
        """Continues from the states of all processes, in order; their number may have changed.

        Raises:
          DataError: they belong to different data.
        """

    def close(self) -> None:
        """Stops reading."""


class Evaluate(Protocol):
    """Measures parameters on held-out data; it reads nothing that training changes."""

    def __call__(
        self, params: Any, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The numbers by name, the same in every process.

        Args:
          params: the stage's parameters.
          stop: asked now and then whether to give up; where one process does, all do.

        Returns:
          the numbers; None if it was stopped.
        """


class StageData(Protocol):
    """The data of one stage, in the tokens of the run."""

    def open_batches(self, *, process_index: int = 0, process_count: int = 1) -> Batches:
        """The batches of one process.

        Raises:
          DataError: the data is missing or cannot be divided among the processes.
        """

    def examples_per_step(self) -> float:
        """Examples that a step takes over all processes, the same on each of them."""

    def make_evaluator(self, setup: TrainSetup, frozen: Mapping[str, Any]) -> Evaluate:
        """The measurements of a stage whose `eval.every` is set, given the trees its loss reads.

        Raises:
          DataError: the held-out data is missing or malformed.
        """
