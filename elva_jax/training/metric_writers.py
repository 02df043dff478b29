"""Writes reports to metrics.jsonl, TensorBoard and Weights & Biases, in the first process only."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_to_dict
from elva_jax.errors import ConfigError, TrainingError
from elva_jax.training.metrics import MergeMetrics, Metrics
from elva_jax.utils.files import write_atomic
from elva_jax.utils.read import parse_json, read_lines

MERGE_FIELDS = tuple(field.name for field in dataclasses.fields(MergeMetrics))


class MetricWriter(Protocol):
    """Takes one report after the other."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds a report; None stands for a number that is not finite."""

    def close(self) -> None:
        """Ends the file or connection."""


class JsonLines:
    """`<folder>/metrics.jsonl`, one line per report; lines after `step` are removed first."""

    def __init__(self, folder: Path, step: int):
        path = folder / "metrics.jsonl"
        lines = [line for line in read_metrics(folder) if line["step"] <= step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Events in `<folder>/tensorboard`; those after `step` are marked as replaced."""

    def __init__(self, folder: Path, step: int):
        # Imports PyTorch if it is installed, which takes seconds.
        from tensorboardX import SummaryWriter  # noqa: PLC0415

        purged = step + 1 if step else None
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=purged)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds a scalar for each finite number."""
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the events."""
        self._events.close()


class WeightsAndBiases:
    """A run of the stage in a project of Weights & Biases, which a restart continues.

    WANDB_MODE=offline keeps it in the folder.

    Raises:
      ConfigError: the package is not installed.
    """

    def __init__(self, folder: Path, config: Config):
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "log.wandb: needs a package that is not installed; pip install wandb,"
                " or set log.wandb='' to do without"
            )
        import wandb  # noqa: PLC0415 (optional)

        name = folder / "wandb_id"
        if not name.exists():
            write_atomic(name, secrets.token_hex(4))
        self._run = wandb.init(
            project=config.log.wandb,
            group=config.name,
            name=f"{config.name}/{folder.name}",
            id=name.read_text(),
            resume="allow",
            dir=str(folder),
            config=config_to_dict(config),
        )
        self._run.define_metric("*", step_metric="step")  # steps that are done again come twice

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs the finite numbers."""
        finite = {name: value for name, value in values.items() if value is not None}
        self._run.log({"step": step, **finite})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class MetricWriters:
    """Several writers as one."""

    def __init__(self, writers: list[MetricWriter]):
        self._writers = writers

    def write(self, step: int, metrics: Metrics) -> None:
        """Adds a report to each writer."""
        flat = flatten(metrics).items()
        values = {name: value if math.isfinite(value) else None for name, value in flat}
        for writer in self._writers:
            writer.write(step, values)


@contextlib.contextmanager
def open_writers(config: Config, folder: Path, step: int) -> Iterator[MetricWriters]:
    """The writers that `config.log` asks for, for a stage's directory, continuing from `step`.

    Raises:
      ConfigError: a package is not installed.
    """
    makers: list[Callable[[], MetricWriter]] = []
    if jax.process_index() == 0:
        makers.append(lambda: JsonLines(folder, step))
        makers += [lambda: TensorBoard(folder, step)] if config.log.tensorboard else []
        makers += [lambda: WeightsAndBiases(folder, config)] if config.log.wandb else []
    with contextlib.ExitStack() as stack:
        yield MetricWriters([stack.enter_context(contextlib.closing(make())) for make in makers])


def flatten(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by the names they are written with: `kept` of merging layer 0 is `merge/kept_0`."""
    flat = {name: value for name, value in metrics.items() if name != "merge"}
    for layer, merge in enumerate(metrics.get("merge", ())):
        flat |= {_merge_name(field, layer): getattr(merge, field) for field in MERGE_FIELDS}
    return flat


def unflatten(flat: Mapping[str, float]) -> Metrics:
    """The inverse of `flatten`, for windows that a checkpoint has saved."""
    metrics: Metrics = dict(flat)
    layers: list[MergeMetrics] = []
    while _merge_name("kept", len(layers)) in metrics:
        names = {field: _merge_name(field, len(layers)) for field in MERGE_FIELDS}
        layers.append(MergeMetrics(**{field: metrics.pop(name) for field, name in names.items()}))
    return metrics | ({"merge": tuple(layers)} if layers else {})


def _merge_name(field: str, layer: int) -> str:
    return f"merge/{field}_{layer}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All reports of a stage directory; an incomplete last line of a killed run is left out."""
    path, lines = folder / "metrics.jsonl", []
    for text in read_lines(path, TrainingError) if path.exists() else ():
        try:
            lines.append(parse_json(text, finite=False))  # a loss may be NaN
        except ValueError:
            break
    return lines
