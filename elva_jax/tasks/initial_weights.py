"""The weights that a stage starts from, and the frozen teachers that its loss reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from elva_jax.checkpoints.wanted import VISION, check_complete, check_shapes, load_tower
from elva_jax.config.merv import RANDOM
from elva_jax.config.schema import Config
from elva_jax.config.teachers import with_teacher
from elva_jax.errors import CheckpointError, ConfigError
from elva_jax.hf.load import load_params
from elva_jax.models.build import parameter_shapes
from elva_jax.parallel.mesh import replicated
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.registry import task_of
from elva_jax.training.setup import TrainSetup
from elva_jax.utils.trees import flatten_paths, unflatten_paths

BASELINE = "its vision tower", "teacher"  # the encoder-based baseline's tower, and its group


def initial_weights(
    setup: TrainSetup, workdir: Path, say: Callable[[str], None]
) -> dict[str, jax.Array]:
    """Parameters by path, as far as a source has them; the rest of the stage's starts at random.

    The source is the last stage before that trains the same, or else the task's `init_from` and
    `part_sources`. What they lack of the task's `towers` comes from these towers' own sources.
    LoRA's factors always start fresh.

    Raises:
      CheckpointError: a parameter of another shape.
      ConvertError: a Hugging Face folder that is damaged or does not fit.
    """
    task, name = _model_task(setup), setup.task.name
    targets = {
        path: leaf
        for path, leaf in flatten_paths(setup.shapes.params).items()
        if not task.is_adapter(path)
    }
    before = _stage_before(task, task.exports)
    source = workdir / before if before else task.init_from
    parts = {} if before else _parts(task, targets, say)
    if not source:
        return parts | _towers(task, workdir, targets, say)
    of_source = targets
    if not before:
        own = tuple(f"{subtree}/" for subtree in task.part_sources)
        of_source = {path: leaf for path, leaf in targets.items() if not path.startswith(own)}
    loaded = load_params(source, of_source, task.config, subtree=task.exports)
    check_shapes(loaded.params, targets, source, f"stage {name}")
    if not loaded.params:
        raise CheckpointError(f"{source}: shares no parameter with stage {name}")
    params = loaded.params | parts
    missing = {path: leaf for path, leaf in targets.items() if path not in params}
    params |= _towers(task, workdir, missing, say)
    note = f"{name}: starts from {source} ({loaded.origin})"
    unused = set(loaded.unused) - parts.keys()
    for label, paths in (("fresh", targets.keys() - params.keys()), ("unused", unused)):
        note += f"; {label}: {', '.join(sorted(paths))}" if paths else ""
    say(note)
    return params


def _parts(
    task: ModelTask, targets: Mapping[str, jax.ShapeDtypeStruct], say: Callable[[str], None]
) -> dict[str, jax.Array]:
    """The parameters that have sources of their own, by path.

    Raises:
      CheckpointError: a source that lacks one of them, or has another shape.
    """
    params: dict[str, jax.Array] = {}
    for subtree, source in task.part_sources.items():
        wanted = {path: leaf for path, leaf in targets.items() if path.startswith(f"{subtree}/")}
        if not source or not wanted:
            continue
        loaded = load_params(source, wanted, task.config, subtree=subtree)
        check_complete(loaded.params, wanted, source, f"stage {task.name}")
        say(f"{task.name}: takes {subtree} from {source} ({loaded.origin})")
        params |= loaded.params
    return params


def frozen_trees(setup: TrainSetup, workdir: Path) -> dict[str, Any]:
    """The trees that the stage's loss reads beside its parameters: the teachers' vision towers.

    Raises:
      CheckpointError: a parameter is missing, or has another shape.
      ConvertError: a Hugging Face folder that is damaged or does not fit.
    """
    everywhere, task, trees = replicated(setup.mesh), _model_task(setup), {}
    for name, teacher in task.teachers.items():
        config = with_teacher(task.config, teacher)
        targets = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)
            for path, shape in parameter_shapes(config, VISION).items()
        }
        key = f"teachers.{name}" if task.config.teachers else "teacher"
        source = _tower_source(task, config, workdir, key)
        params = load_tower(load_params, source, config, targets, f"{VISION}/", f"the run's {key}")
        trees[name] = unflatten_paths(params)[VISION]
    return trees


def _stage_before(task: ModelTask, exports: str) -> str | None:
    """The last earlier stage of the curriculum that trains a subtree."""
    names, stages = list(task.config.curriculum), task.config.stages
    earlier = reversed(names[: names.index(task.name)])
    return next((name for name in earlier if task_of(stages[name]).exports == exports), None)


def _towers(
    task: ModelTask, workdir: Path, missing: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, jax.Array]:
    """The parts of the `missing` parameters that are vision towers in the model, by path."""
    params: dict[str, jax.Array] = {}
    for ours, tower in task.towers.items():
        encoder = ours.rstrip("/").rpartition("tower_")[2]
        merv = bool(task.config.model.encoders)
        label, key = (f"encoder {encoder}", f"encoders.{encoder}") if merv else BASELINE
        wanted = any(path.startswith(ours) for path in missing)
        if wanted and tower.init_from == RANDOM:
            say(f"{task.name}: {label} has random weights")
        elif wanted:
            config = with_teacher(task.config, tower)
            source = _tower_source(task, config, workdir, key)
            params |= load_tower(load_params, source, config, missing, ours, f"the run's {key}")
            say(f"{task.name}: takes {label} from {source}")
    return params


def _tower_source(task: ModelTask, config: Config, workdir: Path, key: str) -> str | Path:
    """Where a vision tower's weights are: `config.teacher.init_from`, or an earlier stage.

    Args:
      task: of the stage.
      config: the run's, with the tower in its group `teacher`.
      workdir: the run's.
      key: the tower's group, in errors.
    """
    before = _stage_before(task, VISION)
    if not (config.teacher.init_from or before):
        raise ConfigError(
            f"{key}.init_from: stage {task.name} needs a vision tower, which {config.init_from}"
            " does not have; set it"
        )
    return config.teacher.init_from or workdir / str(before)


def _model_task(setup: TrainSetup) -> ModelTask:
    """The task of a stage, which tells where its weights come from."""
    assert isinstance(setup.task, ModelTask)  # all of `tasks.registry` are
    return setup.task
