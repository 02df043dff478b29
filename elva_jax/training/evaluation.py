"""The hook that evaluates every `eval.every` steps, and at the end of the stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from elva_jax.checkpoints.state import TrainState
from elva_jax.training.best_weights import PREFIX, BestWeights
from elva_jax.training.goodput import StepClock
from elva_jax.training.hooks import Hook
from elva_jax.training.metric_writers import MetricWriters
from elva_jax.training.metrics import Metrics
from elva_jax.training.progress import StageProgress
from elva_jax.training.setup import TrainSetup
from elva_jax.training.stage_data import Evaluate

SHOWN = ("loss", "exact", "choice", "retrieval")  # on the console


class EvaluationHook(Hook):
    """Evaluates, reports the numbers as `eval/…`, and keeps the best weights.

    Args:
      setup: of the stage.
      evaluator: measures parameters.
      best: takes the weights.
      clock: told what the time goes into.
      writers: of metrics.jsonl and the like.
      progress: shows the numbers.
      stop: whether the run is asked to stop, which does not wait for an evaluation; the next start
        makes up for it.
    """

    def __init__(
        self,
        setup: TrainSetup,
        evaluator: Evaluate,
        *,
        best: BestWeights,
        clock: StepClock,
        writers: MetricWriters,
        progress: StageProgress,
        stop: Callable[[], bool],
    ):
        self._setup, self._evaluator, self._best = setup, evaluator, best
        self._clock, self._writers, self._progress = clock, writers, progress
        self._stop = stop

    def begin(self, step: int, state: TrainState) -> None:
        """Evaluates the step that the stage continues from, where a stop did not let it."""
        if step and self._is_due(step) and step not in self._best.reported_steps():
            self._evaluate(step, state)

    def after_step(
        self, step: int, state: TrainState, batch: Mapping[str, Any], metrics: Metrics
    ) -> None:
        """Evaluates the weights after a step, if it is time."""
        if not self._is_due(step):
            return
        self._clock.charge("host")
        jax.block_until_ready(metrics)
        self._clock.charge("device")
        self._evaluate(step, state)
        self._clock.charge("evaluate")

    def _is_due(self, step: int) -> bool:
        return step % self._setup.task.stage.eval.every == 0 or step == self._setup.steps

    def _evaluate(self, step: int, state: TrainState) -> None:
        # A stage that is complete does not start again.
        start, last = time.monotonic(), step == self._setup.steps
        values = self._evaluator(state.params, lambda: self._stop() and not last)
        if values is None:
            name = self._setup.task.name
            self._progress.note(f"{name}: step {step} is evaluated at the next start")
            return
        saved = self._best.offer(step, self._best.value_of(values), state.params)
        values["seconds"] = time.monotonic() - start
        self._writers.write(step, {PREFIX + name: value for name, value in values.items()})
        shown = [f"{name} {values[name]:.4f}" for name in SHOWN if name in values]
        words = [f"{values['seconds']:.1f} s", *(["best so far"] if saved else [])]
        self._progress.note(
            f"{self._setup.task.name} {step}: held out:  {'  '.join(shown)}  ({', '.join(words)})"
        )
