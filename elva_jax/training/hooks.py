"""Hooks watch the steps of a stage. The loop calls each of them, in the order of its list.

begin, before the first step
before_step -> next batch -> the step is dispatched -> after_step -> on_save, if it is saved
close, in reverse order, whatever ends the stage
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from elva_jax.checkpoints.state import TrainState
from elva_jax.errors import TrainingError
from elva_jax.training.goodput import SessionLog, StepClock
from elva_jax.training.metric_writers import MetricWriters, flatten
from elva_jax.training.metrics import Metrics, MetricsWindow
from elva_jax.training.mfu import Speed
from elva_jax.training.progress import StageProgress
from elva_jax.training.setup import TrainSetup
from elva_jax.training.stage_data import Batches


class Hook:
    """Does nothing; subclasses override the moments that they need."""

    def begin(self, step: int, state: TrainState) -> None:
        """Called once, with the step and the state that the stage continues from."""

    def before_step(self, step: int) -> None:
        """Called before the batch of a step is asked for."""

    def after_step(
        self, step: int, state: TrainState, batch: Mapping[str, Any], metrics: Metrics
    ) -> None:
        """Called when a step is dispatched: `batch` is on the host, the others on the device.

        The next step takes the memory of `state`, which must not be kept.
        """

    def on_save(self, step: int) -> None:
        """Called when the save of a step has started."""

    def close(self) -> None:
        """Called at the end of the stage, also if an error ends it."""


class Profiler(Hook):
    """Traces some steps for TensorBoard's or XProf's viewer, in the first process only.

    Args:
      folder: where the trace goes.
      steps: first and last step, counted from 1 over all stages of this process; None: no trace.
      say: takes a line to show.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._first, self._last = steps if steps and jax.process_index() == 0 else (0, 0)
        self._count, self._tracing = 0, False

    def before_step(self, step: int) -> None:
        """Starts the trace before its first step."""
        self._count += 1
        if self._count == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after_step(
        self, step: int, state: TrainState, batch: Mapping[str, Any], metrics: Metrics
    ) -> None:
        """Writes the trace after its last step, for which it waits."""
        if self._tracing and self._count == self._last:
            jax.block_until_ready(metrics)
            self.close()
            self._say(f"the trace of steps up to {step} is in {self._folder}")

    def close(self) -> None:
        """Writes the trace as far as it is."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


class SaveTimer(Hook):
    """Tells when `checkpoint.minutes` have passed since the last save; 0: never.

    Of several processes only the first measures, so that all save at the same step.
    """

    def __init__(self, minutes: float):
        self._seconds = minutes * 60 if jax.process_index() == 0 else 0
        self._start = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return bool(self._seconds) and time.monotonic() - self._start >= self._seconds

    def on_save(self, step: int) -> None:
        """Starts again."""
        self._start = time.monotonic()


class Reporter(Hook):
    """Reports the means of `log.every` steps to files, to the session log and on the console.

    Args:
      setup: of the stage.
      batches: its data, which has numbers of its own to report.
      window: the steps since the last report.
      clock: told what the time of a step goes into.
      writers: of metrics.jsonl and the like.
      sessions: the log of the run's time.
      progress: shows the newest numbers.
    """

    def __init__(
        self,
        setup: TrainSetup,
        batches: Batches,
        *,
        window: MetricsWindow,
        clock: StepClock,
        writers: MetricWriters,
        sessions: SessionLog,
        progress: StageProgress,
    ):
        self._setup, self._batches, self._window, self._clock = setup, batches, window, clock
        self._writers, self._sessions, self._progress = writers, sessions, progress
        self._speed = Speed(setup)

    def after_step(
        self, step: int, state: TrainState, batch: Mapping[str, Any], metrics: Metrics
    ) -> None:
        """Takes a step, and reports if it is time.

        Metrics are fetched one step late, so that the device never waits for the host.
        """
        setup, clock = self._setup, self._clock
        self._speed.add(batch)
        clock.charge("host")
        self._window.add({**metrics, **self._batches.stats})
        clock.charge("device")
        clock.finish_step()
        self._check(self._window.latest, step - 1)
        if step % setup.task.config.log.every and step < setup.steps:
            self._progress.update(step, self._window.latest)
            return
        values = self._window.report()
        self._check(values, step)
        values |= {"dropped_records": self._batches.dropped}
        values |= self._speed.report(clock.report(), values)
        self._writers.write(step, values)
        self._sessions.update(step, clock)
        self._progress.report(step, values)

    def saved_window(self) -> list[dict[str, float]]:
        """The steps since the last report as a checkpoint carries them; waits for the last one."""
        return [flatten(metrics) for metrics in self._window.fetch()]

    def _check(self, metrics: Mapping[str, Any], step: int) -> None:
        """Ends a run that cannot continue.

        A bad step has changed nothing, so it does no harm to notice it a step late.
        """
        task = self._setup.task
        at = f"stages.{task.name}"
        if metrics.get("bad_run", 0) >= task.config.log.max_bad_steps:
            raise TrainingError(
                f"{task.name}: the loss or its gradient was not finite for"
                f" {metrics['bad_run']:.0f} steps in a row, up to step {step}; the weights of the"
                f" last good step are kept: lower the learning rate of {at}.optimizer, or look at"
                " the data there"
            )
        task.check_metrics(metrics, step)
