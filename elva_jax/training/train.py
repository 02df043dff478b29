"""A whole run: its stages in turn, each from the weights of the one before."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from elva_jax.checkpoints.format import has_checkpoint, saved_steps
from elva_jax.checkpoints.mirror import Mirror, restore_from_mirror
from elva_jax.config.load import resolve
from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_from_dict, config_to_dict
from elva_jax.errors import ConfigError, StartError
from elva_jax.parallel.collectives import all_gather_json, assert_equal_across_processes, barrier
from elva_jax.parallel.mesh import describe_mesh, make_mesh
from elva_jax.training import loop, plots
from elva_jax.training.goodput import SessionLog, describe
from elva_jax.training.hooks import Profiler
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.preemption import StopSignal
from elva_jax.training.recipe import Recipe
from elva_jax.training.setup import set_up
from elva_jax.training.stage_data import Batches, StageData
from elva_jax.training.task import Task
from elva_jax.utils.files import write_atomic
from elva_jax.utils.owner import own
from elva_jax.utils.read import read_json

# Keys that a restart may change, of the run and of each stage's data.
CHANGEABLE = (
    "name",
    "data_dir",
    "data_root",
    "mesh",
    "log",
    "checkpoint",
    "curriculum",
    "tokenizer",
)
CHANGEABLE_DATA = ("workers", "time_limit", "max_bad_fraction")
VISIBLE_WITHIN = 20.0  # seconds until the other hosts see a file of the first one


def run(
    config: ConfigDict | Config,
    workdir: str | Path,
    recipe: Recipe,
    *,
    profile: tuple[int, int] | None = None,
    console: Console | None = None,
) -> int:
    """Trains every stage of `config.curriculum` that is not finished in `workdir`.

    Writes workdir/config.json, tokenizer/, sessions.json, summary.json and curves.png, and for each
    stage workdir/<stage>/{checkpoints/<step>, metrics.jsonl, tensorboard/, finished.json}.

    Args:
      config: the run's configuration.
      workdir: its directory.
      recipe: the tasks of its stages; `tasks.elva_recipe.ELVA` has those of this package.
      profile: first and last step to trace, counted from 1 where this process starts.
      console: where progress is printed; None: nothing is printed.

    Returns:
      the exit status: 0 at the end, 130 if Ctrl-C and 75 if SIGTERM stopped it, with all saved.

    Raises:
      ConfigError: a config that cannot work, or that does not fit what is in `workdir`.
      CheckpointError: weights to start from that are missing or do not fit.
      DataError: data that is missing or bad.
      StartError: another run uses the workdir.
      TrainingError: a loss that stays infinite, or tokens that do not fit into a merge bucket.
    """
    config = resolve(config)
    workdir, mesh = Path(workdir), make_mesh(config.mesh)
    tasks = [recipe.make_task(config, name) for name in config.curriculum]
    for task in tasks:
        task.check_mesh(mesh)
    console = console if console and jax.process_index() == 0 else Console(quiet=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    profiler = Profiler(workdir / "profile", profile, say)
    with _owned(workdir, say):
        return _run_stages(config, tasks, workdir, mesh, console, profiler, recipe)


@contextlib.contextmanager
def _owned(workdir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Process 0 owns the workdir for all of the run; each raises if another run owns it."""
    with contextlib.ExitStack() as stack:
        problem = ""
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(own(workdir, say))
            except StartError as error:
                problem = str(error)
            except OSError as error:
                problem = f"--workdir {workdir}: cannot be written ({error.strerror})"
        if jax.process_count() > 1:
            barrier("owner of the workdir")
        if problem := all_gather_json(problem)[0]:
            raise StartError(problem)
        yield


def _run_stages(
    config: Config,
    tasks: Sequence[Task],
    workdir: Path,
    mesh: Mesh,
    console: Console,
    profiler: Profiler,
    recipe: Recipe,
) -> int:
    """The part of `run` that reads and writes the workdir."""
    first = jax.process_index() == 0

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    mirror_dir = config.checkpoint.mirror
    if first and restore_from_mirror(mirror_dir, workdir):
        say(f"{workdir}: restored from {mirror_dir}")
    if mirror_dir and jax.process_count() > 1:
        barrier("mirror")
    tokenizer = _open_workdir(config, workdir, recipe)
    say(f"{describe_mesh(mesh)}; {recipe.describe(config, mesh)}")
    sessions, status = SessionLog(workdir), 0
    with (
        StopSignal() as stop,
        Mirror(mirror_dir, workdir, keep=config.checkpoint.keep, report=say) as mirror,
    ):
        context = loop.RunContext(
            workdir=workdir,
            mesh=mesh,
            console=console,
            stop=stop,
            sessions=sessions,
            profiler=profiler,
            mirror=mirror,
        )
        for task in tasks:
            if (workdir / task.name / "finished.json").exists():
                say(f"{task.name}: finished")
                continue
            status = _run_stage(task, recipe, tokenizer, context)
            stop.act_at_once()
            if status:
                break
            if first:
                plots.draw(workdir, config)
    if first and not plots.can_draw():
        say(plots.MISSING)
    if first and (summary := sessions.summary()):
        _write_summary(workdir, config, summary)
        say(f"{workdir}: {describe(summary)}")
    return status


def _write_summary(workdir: Path, config: Config, summary: dict[str, Any]) -> None:
    reports = {name: read_metrics(workdir / name) for name in config.curriculum}
    stages = {name: _newest(lines) for name, lines in reports.items() if lines}
    text = json.dumps({**summary, "stages": stages}, indent=2) + "\n"
    write_atomic(workdir / "summary.json", text)


def _newest(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last report of a stage, with the numbers of its last evaluation."""
    reports = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "loss" not in line]
    return {**dict(*evaluations[-1:]), **dict(*reports[-1:])}


def _run_stage(
    task: Task, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: loop.RunContext
) -> int:
    """Trains a stage; returns the status of `loop.train`."""
    folder, workdir = context.workdir / task.name, context.workdir
    folder.mkdir(exist_ok=True)
    data = recipe.open_data(task, tokenizer)
    batches = data.open_batches(
        process_index=jax.process_index(), process_count=jax.process_count()
    )
    try:
        steps = _count_steps(task, data, batches)
        setup = set_up(task, context.mesh, steps)
        weights: Mapping[str, Any] = {}
        if not has_checkpoint(folder):
            weights = recipe.initial_weights(setup, workdir, context.say)
        frozen = recipe.frozen_trees(setup, workdir)
        inputs = loop.StageInputs(data=data, batches=batches, frozen=frozen, weights=weights)
        status = loop.train(setup, inputs, context)
    finally:
        batches.close()
    if saved_steps(folder)[-1:] == [steps] and jax.process_index() == 0:
        write_atomic(folder / "finished.json", json.dumps({"step": steps}) + "\n")
    return status


def _count_steps(task: Task, data: StageData, batches: Batches) -> int:
    """Steps of a stage: its key, or as many as its epochs take."""
    stage = task.stage
    assert_equal_across_processes(f"stages.{task.name}.data.mixture", batches.fingerprint)
    if stage.steps:
        return stage.steps
    examples = stage.epochs * batches.examples_per_epoch
    return math.ceil(examples / data.examples_per_step())


def _open_workdir(config: Config, workdir: Path, recipe: Recipe) -> PreTrainedTokenizerBase:
    """Writes configuration and tokenizer, or checks them against those of an earlier start."""
    workdir.mkdir(parents=True, exist_ok=True)
    saved, folder = workdir / "config.json", workdir / "tokenizer"
    if saved.exists():
        old = config_to_dict(config_from_dict(read_json(saved, ConfigError)))
        _check_unchanged(old, config_to_dict(config), workdir)
    elif any((workdir / name).exists() for name in config.curriculum):
        raise ConfigError(f"{workdir}: holds stages but no config.json; choose another --workdir")
    source = config.tokenizer or Path(config.data_dir) / "tokenizer"
    tokenizer = recipe.load_tokenizer(config, folder if folder.is_dir() else Path(source))
    entries = ("config.json", "tokenizer", *config.curriculum)
    found = [name for name in entries if (workdir / name).exists()]
    # Every process has looked before any of them writes.
    assert_equal_across_processes(f"--workdir {workdir}", found)
    if jax.process_index() == 0:
        if not folder.is_dir():
            temporary = workdir / "tokenizer.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            tokenizer.save_pretrained(temporary)
            temporary.rename(folder)
        write_atomic(saved, json.dumps(config_to_dict(config), indent=2) + "\n")
    assert_equal_across_processes(
        f"--workdir {workdir}, which all hosts must share", _wait_for(saved)
    )
    return tokenizer


def _wait_for(path: Path) -> bool:
    """Whether a file exists; shared storage may show it late."""
    end = time.monotonic() + VISIBLE_WITHIN
    while not (exists := path.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    return exists


def _check_unchanged(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    """Refuses a restart with a configuration that would not continue the same run."""
    started = [name for name in old["curriculum"] if (workdir / name).exists()]
    if list(new["curriculum"][: len(started)]) != started:
        raise ConfigError(
            f"curriculum: {workdir} has started {', '.join(started)} in this order; later stages"
            " may change, these may not"
        )
    before, after = _fixed_keys(old, started), _fixed_keys(new, started)
    keys = [
        key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
    ]
    changed = [f"{key} (was {before.get(key)!r}, is {after.get(key)!r})" for key in keys]
    if changed and started and all(key.endswith((".steps", ".epochs")) for key in keys):
        raise ConfigError(
            f"{workdir}: a stage that has started keeps its length, because its learning rate"
            f" follows from it: {', '.join(changed)}; to train further, add a stage to curriculum,"
            f" or choose another --workdir with --config.init_from={workdir}"
        )
    if changed and started:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{workdir} was started with another configuration: {', '.join(changed[:5])}{more};"
            " set them back, or choose another --workdir"
        )


def _fixed_keys(config: dict[str, Any], started: list[str]) -> dict[str, Any]:
    """The values that must not change, by dotted key: of the run and of the stages it started."""
    kept = {key: value for key, value in config.items() if key not in (*CHANGEABLE, "stages")}
    stages = {name: dict(config["stages"][name]) for name in started}
    for stage in stages.values():
        del stage["eval"]  # changes nothing in training
        data = stage["data"].items()
        stage["data"] = {key: value for key, value in data if key not in CHANGEABLE_DATA}
    return flatten_dict({**kept, "stages": stages}, sep=".")
