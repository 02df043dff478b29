"""The training loop of one stage."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from elva_jax.checkpoints import state as states
from elva_jax.checkpoints.mirror import Mirror
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.data.iterator_state import redistribute
from elva_jax.data.mixture import stage_seed
from elva_jax.data.pipeline import BatchIterator
from elva_jax.errors import CheckpointError, TrainingError
from elva_jax.parallel.mesh import shard_batch
from elva_jax.parallel.sharding import (
    activation_rules,
    logical_axes,
    parameter_shardings,
    state_shardings,
)
from elva_jax.tasks.objective import Objective
from elva_jax.training.goodput import Ledger, SaveTimer, StepClock
from elva_jax.training.metric_writers import flatten, open_writers, unflatten
from elva_jax.training.metrics import Progress, Window
from elva_jax.training.mfu import Speed
from elva_jax.training.optimizer import Optimizer, keep_frozen, make_optimizer
from elva_jax.training.preemption import Agreement, StopSignal
from elva_jax.training.profiler import Profile
from elva_jax.training.step import TrainStep, make_train_step
from elva_jax.utils.trees import flatten_paths


class Setting(NamedTuple):
    """What a stage's shapes settle before any array exists."""

    mesh: Mesh
    rules: tuple
    optimizer: Optimizer
    shapes: states.TrainState  # of ShapeDtypeStruct with shardings

    @property
    def shardings(self) -> states.TrainState:
        """Where each leaf lies."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)


def set_up(
    config: ConfigDict, stage_name: str, objective: Objective, mesh: Mesh, steps: int
) -> Setting:
    """Works out shapes, shardings and the optimiser of a stage."""
    stage = config.stages[stage_name]
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    shapes = nn.meta.unbox(boxed)
    optimizer = make_optimizer(stage.optimizer, steps, shapes, logical_axes(boxed))
    shapes = keep_frozen(shapes, optimizer, stage.optimizer.frozen_dtype)
    shapes = jax.eval_shape(lambda params: states.create(params, optimizer.transform), shapes)
    placed = state_shardings(shapes, parameter_shardings(boxed, mesh, objective.counts), mesh)
    shapes = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        placed,
    )
    return Setting(mesh, activation_rules(boxed, mesh, objective.counts), optimizer, shapes)


def make_step(
    config: ConfigDict, stage_name: str, objective: Objective, setting: Setting
) -> TrainStep:
    """The training step of a stage, as training runs it and `elva plan` compiles it."""
    accumulate = config.stages[stage_name].optimizer.accumulate
    kind = {"zero": config.mesh.zero, "dtype": config.model.dtype}
    return make_train_step(
        objective,
        setting.optimizer,
        setting.mesh,
        setting.rules,
        setting.shardings,
        accumulate,
        **kind,
    )


def fresh_state(
    config: ConfigDict,
    stage_name: str,
    objective: Objective,
    setting: Setting,
    weights: Mapping[str, Any],
) -> states.TrainState:
    """The state at step 0: the parameters that `weights` has by '/'-joined path, and random ones for the rest."""
    shardings = setting.shardings
    wanted = flatten_paths(shardings.params)
    dtypes = {name: leaf.dtype for name, leaf in flatten_paths(setting.shapes.params).items()}
    missing = {name: where for name, where in wanted.items() if name not in weights}

    def init(key):  # what is not asked for is neither computed nor compiled
        leaves = flatten_paths(nn.meta.unbox(objective.init(key)))
        return {name: leaves[name].astype(dtypes[name]) for name in missing}

    key = jax.random.key(stage_seed(config.seed, stage_name, "init"))
    random = jax.jit(init, out_shardings=missing)(key) if missing else {}
    leaves = [random[name] if name in random else weights[name] for name in wanted]
    params = jax.tree.unflatten(jax.tree.structure(shardings.params), leaves)
    create = jax.jit(
        lambda params: states.create(params, setting.optimizer.transform),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return create(params)


def train(
    config: ConfigDict,
    stage_name: str,
    folder: Path,
    objective: Objective,
    setting: Setting,
    *,
    steps: int,
    batches: BatchIterator,
    frozen: Any,
    weights: Mapping[str, Any],
    stop: StopSignal,
    ledger: Ledger,
    profile: Profile,
    mirror: Mirror,
    console: Console,
) -> int:
    """Trains a stage to its last step, from its newest checkpoint if it has one.

    Args:
      config: the run's configuration.
      stage_name: one of its stages.
      folder: the stage's directory.
      objective: what to minimise.
      setting: from `set_up`.
      steps: optimiser steps of the whole stage.
      batches: this process's data.
      frozen: trees that the loss reads and nothing changes.
      weights: parameters to start from, by '/'-joined path; unused after a restart.
      stop: says whether a signal asked to stop.
      ledger: takes down where the time goes.
      profile: traces the steps that it was asked for.
      mirror: copies what is saved.
      console: where progress goes.

    Returns:
      0 at the end, and the exit status where a signal asked to stop (all is saved).

    Raises:
      CheckpointError: nothing whole to go on from, or a save that failed, where `checkpoint.on_error` or the stage's end forbids to go on.
      ConfigError: reports go to a package that is not installed.
      TrainingError: too many losses in a row that are not finite.
    """
    train_step = make_step(config, stage_name, objective, setting)
    agreement, timer, clock = (
        Agreement(setting.mesh, stage_name),
        SaveTimer(config.checkpoint.minutes),
        StepClock(),
    )
    speed = Speed(config, stage_name, setting.optimizer.labels, setting.shapes.params)
    keep, on_error = config.checkpoint.keep, config.checkpoint.on_error
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(console, stage_name, steps))
        checkpoints = stack.enter_context(
            Checkpoints(
                folder / "checkpoints",
                keep=keep,
                on_error=on_error,
                report=progress.note,
                on_saved=mirror.copy,
            )
        )
        if checkpoints.latest is None:
            state, window = fresh_state(config, stage_name, objective, setting, weights), Window()
        else:
            state, window = _restore(checkpoints, setting, batches, stage_name, progress)
        start = int(state.step)
        writers = stack.enter_context(open_writers(config, folder, start))
        stack.callback(profile.close)
        ledger.open(stage_name, start)
        (stopping,) = agreement.now([stop.code])
        if stopping:
            progress.note(
                f"{stage_name}: stopped before step {start + 1}; the same command goes on"
            )
            return stopping
        for step in range(start + 1, steps + 1):
            profile.before()
            batch = next(batches)
            clock.lap("data")
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, frozen, shard_batch(batch, setting.mesh))
            speed.add(batch)
            clock.lap("host")
            window.add({**metrics, **batches.stats})
            clock.lap("device")
            clock.step_done()
            _check(window.latest, step - 1, config, folder)
            if profile.after(metrics):
                progress.note(
                    f"{stage_name}: the trace of steps up to {step} is in {profile.folder}"
                )
            checkpoints.poll()
            stopping, due = agreement.late([stop.code, timer.due])
            if step % config.log.every == 0 or step == steps:
                values = window.report()
                _check(values, step, config, folder)
                values |= {
                    "dropped_records": batches.dropped,
                    **speed.report(clock.report(), values),
                }
                writers.write(step, values)
                ledger.update(step, clock)
                progress.update(step, values, report=True)
            else:
                progress.update(step, window.latest, report=False)
            clock.lap("host")
            permanent = step == steps or step % config.checkpoint.every == 0
            if permanent or stopping or due:
                steps_of_window = [flatten(metrics) for metrics in window.fetch()]
                position = {"batches": batches.get_state(), "window": steps_of_window}
                checkpoints.save(step, state, position, config, stage_name, temporary=not permanent)
                timer.restart()
                clock.lap("save")
            if stopping and step < steps:
                break
        checkpoints.wait()
        clock.lap("save")
        saved = checkpoints.latest
        if stopping and step < steps:
            progress.note(
                f"{stage_name}: stopped at step {step} of {steps}, saved at {saved} in {folder}; the same command goes on"
            )
        elif saved != steps:
            raise CheckpointError(
                f"{folder}: the end of the stage could not be saved; make room and start the same command again"
            )
        if start < steps:
            ledger.update(step, clock)
    return agreement.now([stop.code])[0]


def _restore(
    checkpoints: Checkpoints,
    setting: Setting,
    batches: BatchIterator,
    stage_name: str,
    progress: Progress,
) -> tuple[states.TrainState, Window]:
    """State and open window of the newest whole step; `batches` goes on behind it."""
    state, positions = checkpoints.restore(setting.shapes)
    batches.set_state(
        redistribute(
            [position["batches"] for position in positions],
            jax.process_index(),
            jax.process_count(),
        )
    )
    anew = (
        ""
        if len(positions) == jax.process_count()
        else f"; saved by {len(positions)} process(es): data are dealt out anew"
    )
    progress.note(f"{stage_name}: goes on from step {int(state.step)}{anew}")
    return state, Window([unflatten(step) for step in positions[0]["window"]])


def _check(values: Mapping[str, Any], step: int, config: ConfigDict, folder: Path) -> None:
    """Ends a run that cannot go on; a bad step has changed nothing, so that no harm was done by noticing it a step late."""
    if values.get("bad_run", 0) >= config.log.max_bad_steps:
        raise TrainingError(
            f"{folder.name}: the loss or its gradient was not finite for {values['bad_run']:.0f} steps in a row, up to step {step};"
            f" the weights of the last good step are kept in {folder}: lower the learning rate of stages.{folder.name}.optimizer,"
            " or look at the data there"
        )
    overflow = sum(layer.overflow for layer in values.get("merge", ()))
    if overflow:
        raise TrainingError(
            f"{folder.name}: step {step}: {overflow:.0f} tokens did not fit into the merge bucket;"
            f" raise stages.{folder.name}.merge_buckets"
        )
