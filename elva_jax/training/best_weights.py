"""The weights of the best evaluation, in `<workdir>/<stage>.best/checkpoints/<step>`.

A restart may continue from a step before the newest best one. An older best one is therefore kept
until the training state of a later step is on disk:

    saved 40      evaluated 50: best      evaluated 60: best          saved 60
    best  -       best  50                best  50, 60 (50 is kept)   best  60
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from elva_jax.checkpoints.format import STORAGE_ERRORS, saved_steps, short_reason
from elva_jax.checkpoints.save import save_weights
from elva_jax.errors import CheckpointError, ConfigError
from elva_jax.parallel.collectives import all_gather_json
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.task import Task

PREFIX = "eval/"  # of the numbers in reports


class BestWeights:
    """Keeps the weights of the best evaluation, if the stage asks for it.

    Every process calls every method.

    Args:
      task: of the stage.
      workdir: the run's.
      report: takes one line of text.
      copy: copies the directory of a saved step to the mirror.
    """

    def __init__(
        self,
        task: Task,
        workdir: Path,
        *,
        report: Callable[[str], None],
        copy: Callable[[Path], None],
    ):
        self._task, self._stage = task, workdir / task.name
        self._folder, self._report, self._copy = best_folder(self._stage), report, copy
        self._metric = task.stage.eval.keep_best
        smaller = smaller_is_better(self._metric, task.stage.eval.better)
        self._sign, self._best = (-1.0 if smaller else 1.0), -math.inf

    def value_of(self, values: Mapping[str, float]) -> float:
        """The number that decides; NaN where nothing is kept.

        Raises:
          ConfigError: an evaluation does not have it.
        """
        if self._metric and self._metric not in values:
            raise ConfigError(
                f"stages.{self._task.name}.eval.keep_best: an evaluation has no number"
                f" '{self._metric}'; it has {', '.join(values)}"
            )
        return values.get(self._metric, math.nan)

    def begin(self, step: int) -> None:
        """The stage continues from `step`: later weights, which come again, are removed.

        So is what a killed process has left of others.
        """
        if not self._metric:
            return
        if jax.process_index() == 0:
            known = {str(found) for found in saved_steps(self._folder) if found <= step}
            for entry in self._path(0).parent.glob("*"):
                if entry.name not in known:
                    shutil.rmtree(entry)
        value = self._saved_value() if jax.process_index() == 0 else None
        (value, *_) = all_gather_json(value)
        self._best = -math.inf if value is None else self._sign * value

    def reported_steps(self) -> list[int]:
        """The steps of the stage that have been evaluated."""
        steps = [line["step"] for line in read_metrics(self._stage) if is_evaluation(line)]
        return all_gather_json(steps)[0]

    def offer(self, step: int, value: float, params: Any) -> bool:
        """Saves the weights of a step if its value is the best so far, and says whether it did.

        Raises:
          CheckpointError: they cannot be saved, and `checkpoint.on_error` is "stop".
        """
        if not self._metric or not self._sign * value > self._best:
            return False
        config = self._task.config
        try:
            save_weights(self._folder, params, config, self._task.name, step=step)
        except STORAGE_ERRORS as error:
            problem = f"{self._path(step)}: cannot be saved ({short_reason(error)})"
            if config.checkpoint.on_error == "stop":
                raise CheckpointError(
                    f"{problem}: free some space and start again, or set"
                    " checkpoint.on_error=continue"
                ) from error
            self._report(f"{problem}; training continues")
            return False
        self._best = self._sign * value
        self._copy(self._path(step))
        return True

    def on_saved(self, path: Path) -> None:
        """The training state of a step is on disk: only its best weights so far are needed."""
        if not self._metric or jax.process_index() > 0:
            return
        old = [step for step in saved_steps(self._folder) if step <= int(path.name)][:-1]
        for step in old:
            deleted = self._path(step).rename(self._path(step).with_name(f"{step}.deleted"))
            shutil.rmtree(deleted, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return (self._folder / "checkpoints" / str(step)).absolute()

    def _saved_value(self) -> float | None:
        """The reported value of the newest best weights, which are the best; None: there are none.

        Weights without a report, as after another `keep_best`, are removed.
        """
        reports = {
            line["step"]: line[PREFIX + self._metric]
            for line in read_metrics(self._stage)
            if line.get(PREFIX + self._metric) is not None
        }
        for step in reversed(saved_steps(self._folder)):
            if step in reports:
                return reports[step]
            shutil.rmtree(self._path(step))
        return None


def smaller_is_better(metric: str, better: str) -> bool:
    """The direction of a number by `eval.better`; a loss is smaller by itself."""
    return better == "smaller" or (better == "auto" and "loss" in metric.split("/"))


def is_evaluation(report: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is an evaluation."""
    return any(name.startswith(PREFIX) for name in report)


def best_folder(stage: Path) -> Path:
    """The folder of the best weights of a stage, given that of the stage."""
    return stage.with_name(f"{stage.name}.best")
