"""The protocol of a task: how a stage is trained, from its batches to its loss.

    tokenizer -> batches -> loss(params, frozen, batch) -> value, metrics

A new task is a module with a subclass of `Task` and its line in `tasks.registry.TASKS`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config, StageConfig, TeacherConfig
from elva_jax.config.serialize import typed
from elva_jax.models.lora import is_factor
from elva_jax.parallel.mesh import check_batch, check_length
from elva_jax.utils.trees import flatten_paths

if TYPE_CHECKING:
    from elva_jax.data.pipeline import BatchIterator

# Scalars by name; `merge`, if there are merging layers, is a tuple of their MergeMetrics.
Metrics = dict[str, Any]
MATRICES = ("/kernel", "/embed_tokens", "/lm_head")  # ends of the paths of matrices


class MergeMetrics(struct.PyTreeNode):
    """Scalars over a batch after one merging layer."""

    kept: jax.Array | float  # share of the batch's patches that are left
    forced: jax.Array | float  # merges that only the bucket asked for
    overflow: jax.Array | float  # tokens that did not fit into the bucket; must be 0
    padding: jax.Array | float  # share of the bucket that is empty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """The work in one or several batches, over all processes; padding does not count."""

    tokens: float = 0.0
    visual: float = 0.0  # tokens that stand for frames
    patches: float = 0.0
    frames: float = 0.0
    pairs: float = 0.0  # pairs of query and key before any merge
    clips: float = 0.0  # videos and images, where a teacher sees clips

    def __add__(self, other: Content) -> Content:
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Content(**{name: mine[name] + theirs[name] for name in mine})


class TrainedMatrices:
    """The matrices of a parameter tree, and how much of them is trained.

    Args:
      labels: tree of the optimizer's labels; `frozen` has no gradient of its own.
      shapes: the same tree with the parameters' shapes.
    """

    def __init__(self, labels: Any, shapes: Any):
        label, leaves = flatten_paths(labels), flatten_paths(shapes)
        self.lora_size = sum(leaf.size for path, leaf in leaves.items() if is_factor(path))
        self._sizes = {
            path: (leaf.size, leaf.size * (label[path] != "frozen"))
            for path, leaf in leaves.items()
            if path.endswith(MATRICES)
        }

    def share(self, prefix: str) -> float:
        """The trained share of the matrices whose paths begin with a prefix."""
        sizes = [size for path, size in self._sizes.items() if path.startswith(prefix)]
        return sum(trained for _, trained in sizes) / max(sum(size for size, _ in sizes), 1)


class Task(Protocol):
    """The training of one stage: its data, parameters, loss and cost.

    Attributes:
      exports: the subtree of the parameters that later stages, inference and conversion read.
      config: the run's configuration.
      name: the stage.
      stage: its configuration.
    """

    exports: ClassVar[str]
    config: Config
    name: str
    stage: StageConfig

    def __init__(self, config: ConfigDict | Config, name: str):
        self.config, self.name = typed(Config, config), name
        self.stage = self.config.stages[name]

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

    @property
    @abstractmethod
    def logical_sizes(self) -> dict[str, int]:
        """Sizes of logical axes that no parameter's shape shows; sharding must divide them."""

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises ConfigError if the mesh does not divide the batch or the sequences evenly."""
        stage, prefix = self.stage, f"stages.{self.name}."
        check_batch(mesh, stage.batch_size, stage.optimizer.accumulate, prefix + "batch_size")
        for key, length in self.sequence_lengths():
            check_length(mesh, length, prefix + key)

    def sequence_lengths(self) -> list[tuple[str, int]]:
        """(key of the stage, length) of every sequence that mesh.context must divide."""
        return []

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

    @abstractmethod
    def open_batches(
        self, tokenizer: PreTrainedTokenizerBase, *, process_index: int = 0, process_count: int = 1
    ) -> BatchIterator:
        """The batches of one process.

        Raises:
          DataError: the data is missing or cannot be divided among the processes.
        """

    @abstractmethod
    def batch_shapes(self) -> dict[str, Any]:
        """The whole batch as a tree of ShapeDtypeStruct."""

    def examples_per_step(self, tokenizer: PreTrainedTokenizerBase) -> float:
        """Examples that a step takes over all processes, the same on each of them."""
        return float(self.stage.batch_size)

    @abstractmethod
    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axes."""

    @abstractmethod
    def loss(self, params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """The loss of a batch or micro-batch, and its metrics."""

    def prepare(self, batch: Any) -> Any:
        """Adds to a batch what each of its micro-batches must know about the whole."""
        return batch

    def look_ahead(self, params: Any, frozen: Any, batch: Any) -> Any:
        """Adds to a batch what a pass over all of its micro-batches tells each of them.

        It runs before the first micro-batch and has no gradient; by default there is no such pass.
        """
        del params, frozen
        return batch

    @abstractmethod
    def content(self, batch: Mapping[str, Any]) -> Content:
        """The work in a batch of this process, multiplied by the number of processes."""

    @abstractmethod
    def flops(
        self, content: Content, metrics: Mapping[str, Any], matrices: TrainedMatrices
    ) -> float:
        """Model FLOPs of forward and backward pass; `metrics` tell how many tokens are left."""


def split_rows(batch: Any, count: int) -> Any:
    """Micro-batches [count, b / count, ...] of a batch [b, ...].

    Micro-batch i takes rows i, i + count, i + 2 count, ... so that rows stay on the device that
    holds them.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def join_rows(parts: Any) -> Any:
    """Back from `split_rows`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def over_processes(content: Content) -> Content:
    """The content of all processes, given that of one: all have as many rows."""
    fields = dataclasses.asdict(content)
    return Content(**{name: value * jax.process_count() for name, value in fields.items()})
