"""The protocol of a task: all that the trainer knows of the computation of a stage.

    init(key) -> params;  loss(params, frozen, batch) -> value, metrics

A task reads no data and no weights, so that it runs where the packages for that are missing; see
`training.recipe`. `tasks.base` has what the tasks of this package share.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from elva_jax.config.schema import Config, StageConfig
from elva_jax.config.serialize import typed
from elva_jax.parallel.mesh import check_batch, check_length
from elva_jax.training.metrics import Metrics
from elva_jax.utils.trees import flatten_paths

MATRICES = ("/kernel", "/embed_tokens", "/lm_head")  # ends of the paths of matrices


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


def over_processes(content: Content) -> Content:
    """The content of all processes, given that of one: all have as many rows."""
    fields = dataclasses.asdict(content)
    return Content(**{name: value * jax.process_count() for name, value in fields.items()})


class TrainedMatrices:
    """The matrices of a parameter tree, and how much of them is trained.

    Args:
      labels: tree of the optimizer's labels; `frozen` has no gradient of its own.
      shapes: the same tree with the parameters' shapes.
    """

    def __init__(self, labels: Any, shapes: Any):
        label, self._leaves = flatten_paths(labels), flatten_paths(shapes)
        self._sizes = {
            path: (leaf.size, leaf.size * (label[path] != "frozen"))
            for path, leaf in self._leaves.items()
            if path.endswith(MATRICES)
        }

    def share(self, prefix: str) -> float:
        """The trained share of the matrices whose paths begin with a prefix."""
        sizes = [size for path, size in self._sizes.items() if path.startswith(prefix)]
        return sum(trained for _, trained in sizes) / max(sum(size for size, _ in sizes), 1)

    def size(self, chosen: Callable[[str], bool]) -> int:
        """The size of all parameters, also others than matrices, whose paths are chosen."""
        return sum(leaf.size for path, leaf in self._leaves.items() if chosen(path))


class Task(Protocol):
    """The computation of one stage: its parameters, loss and cost.

    Attributes:
      config: the run's configuration.
      name: the stage.
      stage: its configuration.
    """

    config: Config
    name: str
    stage: StageConfig

    def __init__(self, config: ConfigDict | Config, name: str):
        self.config, self.name = typed(Config, config), name
        self.stage = self.config.stages[name]

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

    @abstractmethod
    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axes."""

    def is_adapter(self, path: str) -> bool:
        """Whether the parameter at a '/'-joined path is a factor of LoRA.

        With `optimizer.lora` factors are trained and all other parameters are frozen.
        """
        del path
        return False

    def is_outside(self, path: str) -> bool:
        """Whether the parameter at a '/'-joined path is in a head beside the network.

        Muon takes matrices inside the network only.
        """
        del path
        return False

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

    def check_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Ends a run whose metrics tell that it cannot continue.

        Args:
          metrics: those of a step, or of several ones up to it.
          step: its number.

        Raises:
          TrainingError: naming the stage, the step and the way out.
        """
        del metrics, step

    @abstractmethod
    def content(self, batch: Mapping[str, Any]) -> Content:
        """The work in a batch of this process, multiplied by the number of processes."""

    @abstractmethod
    def flops(
        self, content: Content, metrics: Mapping[str, Any], matrices: TrainedMatrices
    ) -> float:
        """Model FLOPs of forward and backward pass; `metrics` tell how many tokens are left."""
