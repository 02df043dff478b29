"""The common part of this package's tasks: where weights come from, and what `elva plan` asks.

A new task is a module with a subclass of `ModelTask` and its line in `tasks.registry.TASKS`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from elva_jax.config.schema import TeacherConfig
from elva_jax.training.task import Task


class ModelTask(Task):
    """A task that trains parameters which other stages, inference and conversion read.

    Attributes:
      exports: the subtree of the parameters that they read.
    """

    exports: ClassVar[str]

    @property
    def teachers(self) -> Mapping[str, TeacherConfig]:
        """The vision towers that the loss reads as frozen trees, by their names."""
        return {}

    @property
    def towers(self) -> Mapping[str, TeacherConfig]:
        """The vision towers that are part of the model, by the path of their parameters.

        They start from their own weights where the stage's source does not have them.
        """
        return {}

    @property
    @abstractmethod
    def init_from(self) -> str:
        """Where the weights of the first stage of this kind come from; "" for random ones."""

    @property
    def part_sources(self) -> Mapping[str, str]:
        """Subtrees of the parameters that do not come from `init_from`, and their own sources.

        They are those of the first stage of this kind; "" for random ones.
        """
        return {}

    @property
    @abstractmethod
    def row_tokens(self) -> int:
        """Tokens of one row of the batch, padding included."""

    @property
    def packs_rows(self) -> bool:
        """Whether several examples share a row."""
        return False

    @abstractmethod
    def batch_shapes(self) -> dict[str, Any]:
        """The whole batch as a tree of ShapeDtypeStruct."""

    def decoder_pieces(self) -> list[tuple[int, int]]:
        """(layers, tokens of a row) of each piece of the decoder; empty without a decoder."""
        return []

    @property
    def tower_attention(self) -> float:
        """FLOPs of full attention in one forward pass of trained towers over one row."""
        return 0.0

    @property
    def tower_passes(self) -> int:
        """Forward passes of trained towers in a step, recomputed ones among them."""
        return 1
