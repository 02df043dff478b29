"""The training loop of one stage.

The order of its calls has reasons:

- Hooks take a step before it is saved, so a checkpoint holds the metrics since the last report.
- The consensus about stopping and saving is asked in every step by every process, since it is a
  collective; its answer is that of the previous step, so no process waits for the slowest.
- The reporter is the first hook: it waits for the step before, which the clock charges to the
  device. What comes after the hooks is charged to the host, except an evaluation, which is the
  second hook and measures the weights that a checkpoint of the same step has.
- A save runs in the background; the mirror copies a step when it is complete on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from elva_jax.checkpoints.mirror import Mirror
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.checkpoints.state import TrainState
from elva_jax.errors import CheckpointError
from elva_jax.parallel.mesh import shard_batch
from elva_jax.training.best_weights import BestWeights
from elva_jax.training.evaluation import EvaluationHook
from elva_jax.training.goodput import SessionLog, StepClock
from elva_jax.training.hooks import Hook, Profiler, Reporter, SaveTimer
from elva_jax.training.metric_writers import MetricWriters, open_writers, unflatten
from elva_jax.training.metrics import MetricsWindow
from elva_jax.training.preemption import Consensus, StopSignal
from elva_jax.training.progress import StageProgress
from elva_jax.training.setup import TrainSetup, fresh_state
from elva_jax.training.stage_data import Batches, StageData
from elva_jax.training.step import TrainStep

RESTART = "start the same command again to continue"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """The objects that all stages of a run share."""

    workdir: Path
    mesh: Mesh
    console: Console
    stop: StopSignal
    sessions: SessionLog
    profiler: Profiler
    mirror: Mirror

    def say(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, markup=False, highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageInputs:
    """The data, frozen trees and initial weights of a stage."""

    data: StageData
    batches: Batches  # of this process
    frozen: Mapping[str, Any]  # trees that the loss reads and nothing changes
    weights: Mapping[str, Any]  # parameters to start from, by path; unused after a restart


def train(setup: TrainSetup, inputs: StageInputs, run: RunContext) -> int:
    """Trains a stage to its last step, from its newest checkpoint if it has one.

    Returns:
      0 at the end, or the exit status that a signal asked for; everything is saved then.

    Raises:
      CheckpointError: nothing whole to continue from, or a save failed, and `checkpoint.on_error`
        or the end of the stage does not allow to continue.
      ConfigError: reports go to a package that is not installed.
      TrainingError: too many losses in a row that are not finite.
    """
    config, name, folder = setup.task.config, setup.task.name, run.workdir / setup.task.name
    train_step, clock, timer = TrainStep(setup), StepClock(), SaveTimer(config.checkpoint.minutes)
    consensus = Consensus(setup.mesh, name)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(StageProgress(run.console, name, setup.steps))
        best = BestWeights(setup.task, run.workdir, report=progress.note, copy=run.mirror.copy)
        checkpoints = stack.enter_context(_open_checkpoints(setup, run, progress, best))
        state, window = _start(setup, inputs, checkpoints, progress)
        start = step = int(state.step)
        writers = stack.enter_context(open_writers(config, folder, start))
        run.sessions.begin(name, start)
        best.begin(start)
        reports = _Reports(clock=clock, writers=writers, progress=progress, best=best)
        reporter, evaluation = _make_hooks(setup, inputs, run, window, reports)
        hooks: tuple[Hook, ...] = (reporter, evaluation, run.profiler, timer)
        for hook in hooks:
            stack.callback(hook.close)
        (status,) = consensus.now([run.stop.code])
        if status:
            progress.note(f"{name}: stopped before step {start + 1}; {RESTART}")
            return status
        for hook in hooks:
            hook.begin(start, state)
        for step in range(start + 1, setup.steps + 1):
            for hook in hooks:
                hook.before_step(step)
            batch = next(inputs.batches)
            clock.charge("data")
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, inputs.frozen, shard_batch(batch, setup.mesh))
            run.stop.defer()
            for hook in hooks:
                hook.after_step(step, state, batch, metrics)
            checkpoints.poll()
            status, due = consensus.previous([run.stop.code, timer.due])
            clock.charge("host")
            permanent = step == setup.steps or step % config.checkpoint.every == 0
            if permanent or status or due:
                data = {"batches": inputs.batches.get_state(), "window": reporter.saved_window()}
                checkpoints.save(step, state, data, config, name, temporary=not permanent)
                for hook in hooks:
                    hook.on_save(step)
                clock.charge("save")
            if status:
                break
        checkpoints.wait()
        clock.charge("save")
        _check_end(setup, step, checkpoints.latest, folder, progress)
        if step > start:
            run.sessions.update(step, clock)
    return consensus.now([run.stop.code])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reports:
    """The recipients of the reports of a stage's hooks."""

    clock: StepClock
    writers: MetricWriters
    progress: StageProgress
    best: BestWeights


def _make_hooks(
    setup: TrainSetup, inputs: StageInputs, run: RunContext, window: MetricsWindow, to: _Reports
) -> tuple[Reporter, Hook]:
    """The hooks that report: means over steps, and evaluations, if the stage has any."""
    reporter = Reporter(
        setup,
        inputs.batches,
        window=window,
        clock=to.clock,
        writers=to.writers,
        sessions=run.sessions,
        progress=to.progress,
    )
    if not setup.task.stage.eval.every:
        return reporter, Hook()
    evaluation = EvaluationHook(
        setup,
        inputs.data.make_evaluator(setup, inputs.frozen),
        best=to.best,
        clock=to.clock,
        writers=to.writers,
        progress=to.progress,
        stop=lambda: bool(run.stop.code),
    )
    return reporter, evaluation


def _open_checkpoints(
    setup: TrainSetup, run: RunContext, progress: StageProgress, best: BestWeights
) -> Checkpoints:
    settings = setup.task.config.checkpoint

    def on_saved(path: Path) -> None:
        run.mirror.copy(path)
        best.on_saved(path)

    return Checkpoints(
        run.workdir / setup.task.name / "checkpoints",
        keep=settings.keep,
        on_error=settings.on_error,
        report=progress.note,
        on_saved=on_saved,
    )


def _start(
    setup: TrainSetup, inputs: StageInputs, checkpoints: Checkpoints, progress: StageProgress
) -> tuple[TrainState, MetricsWindow]:
    """A fresh state; or that of the newest step, with its window, and the batches that follow."""
    if checkpoints.latest is None:
        return fresh_state(setup, inputs.weights), MetricsWindow()
    state, saved = checkpoints.restore(setup.shapes)
    inputs.batches.resume([data["batches"] for data in saved])
    note = f"{setup.task.name}: continues from step {int(state.step)}"
    if len(saved) != jax.process_count():
        note += f"; saved by {len(saved)} process(es), so data are distributed again"
    progress.note(note)
    return state, MetricsWindow([unflatten(metrics) for metrics in saved[0]["window"]])


def _check_end(
    setup: TrainSetup, step: int, saved: int | None, folder: Path, progress: StageProgress
) -> None:
    """Tells where a stage stopped.

    Raises:
      CheckpointError: it came to its end, but that is not saved.
    """
    if step < setup.steps:
        progress.note(
            f"{setup.task.name}: stopped at step {step} of {setup.steps}, saved at {saved} in"
            f" {folder}; {RESTART}"
        )
    elif saved != setup.steps:
        raise CheckpointError(
            f"{folder}: the end of the stage could not be saved; free some space and start the"
            " same command again"
        )
