"""Where reports are written: metrics.jsonl, TensorBoard, Weights & Biases. Of several processes the first alone writes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from elva_jax.config.serialize import config_to_dict
from elva_jax.errors import ConfigError
from elva_jax.tasks.objective import MergeMetrics
from elva_jax.utils.files import write_atomic

MERGE_FIELDS = tuple(field.name for field in dataclasses.fields(MergeMetrics))


class Writer(Protocol):
    """Takes one report after the other."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds a report; None stands for what was not finite."""

    def close(self) -> None:
        """Ends the file or connection."""


class JsonLines:
    """`<folder>/metrics.jsonl`, one line a report; lines behind `step`, of a run that was cut off, are removed."""

    def __init__(self, folder: Path, step: int):
        path = folder / "metrics.jsonl"
        lines = [line for line in _lines(path) if line["step"] <= step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Events in `<folder>/tensorboard`; those behind `step` are marked as replaced."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import (
            SummaryWriter,  # imports PyTorch where there is one, which takes seconds
        )

        self._events = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of the stage in a project of Weights & Biases, which a restart goes on with; WANDB_MODE=offline keeps it in the folder.

    Raises:
      ConfigError: the package is not installed.
    """

    def __init__(self, folder: Path, config: ConfigDict):
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "log.wandb: needs a package that is not installed; pip install wandb, or set log.wandb='' to do without"
            )
        import wandb

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
        self._run.define_metric("*", step_metric="step")  # steps that are done again may come twice

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log(
            {"step": step, **{name: value for name, value in values.items() if value is not None}}
        )

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: list[Writer]):
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a report to each writer; numbers that are not finite become None."""
        plain = {
            name: value if math.isfinite(value) else None
            for name, value in flatten(metrics).items()
        }
        for writer in self._writers:
            writer.write(step, plain)


def flatten(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by the names they are written with: `kept` after merging layer 0 is `merge/kept_0`."""
    flat = {name: value for name, value in metrics.items() if name != "merge"}
    for k, layer in enumerate(metrics.get("merge", ())):
        flat |= {_merge_name(name, k): getattr(layer, name) for name in MERGE_FIELDS}
    return flat


def unflatten(flat: Mapping[str, float]) -> dict[str, Any]:
    """The way back from `flatten`, for what a checkpoint has saved."""
    metrics, layers = dict(flat), []
    while _merge_name("kept", len(layers)) in metrics:
        names = {name: _merge_name(name, len(layers)) for name in MERGE_FIELDS}
        layers.append(MergeMetrics(**{name: metrics.pop(key) for name, key in names.items()}))
    return metrics | ({"merge": tuple(layers)} if layers else {})


def _merge_name(field: str, layer: int) -> str:
    return f"merge/{field}_{layer}"


@contextlib.contextmanager
def open_writers(config: ConfigDict, folder: Path, step: int) -> Iterator[Writers]:
    """The writers that `config.log` asks for, for a stage's directory that training goes on in from `step`.

    Raises:
      ConfigError: a package that is not installed.
    """
    with contextlib.ExitStack() as stack:
        writers: list[Writer] = []
        if jax.process_index() == 0:
            makers = [
                (True, lambda: JsonLines(folder, step)),
                (config.log.tensorboard, lambda: TensorBoard(folder, step)),
                (config.log.wandb, lambda: WeightsAndBiases(folder, config)),
            ]
            for wanted, make in makers:
                if wanted:
                    writers.append(make())
                    stack.callback(writers[-1].close)
        yield Writers(writers)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All reports of a stage directory, in order; empty where there are none."""
    return _lines(folder / "metrics.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a metrics file; the half line that a killed run leaves behind is dropped."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
