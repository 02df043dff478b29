"""A whole run: its stages in turn, each from the weights of the one before, resumable anywhere."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from elva_jax.checkpoints.format import has_checkpoint, saved_steps
from elva_jax.checkpoints.mirror import Mirror, restore_from_mirror
from elva_jax.config.serialize import config_from_dict, config_to_dict
from elva_jax.config.validate import validate
from elva_jax.data.batches import caption_batches, conversation_batches, conversations_per_step
from elva_jax.data.mixture import examples_per_epoch
from elva_jax.data.pipeline import BatchIterator
from elva_jax.data.tokenizer import load as load_tokenizer
from elva_jax.errors import CheckpointError, ConfigError
from elva_jax.hf.load import load_params
from elva_jax.models.build import parameter_shapes
from elva_jax.models.lora import is_factor
from elva_jax.ops.attention import choose_implementation
from elva_jax.parallel.distributed import assert_equal_across_processes, barrier
from elva_jax.parallel.mesh import check_stage, describe_mesh, make_mesh, replicated
from elva_jax.tasks.objective import guided, make_objective
from elva_jax.training import loop, plots
from elva_jax.training.goodput import Ledger, in_words
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.preemption import StopSignal
from elva_jax.training.profiler import Profile
from elva_jax.utils.files import write_atomic
from elva_jax.utils.trees import flatten_paths, unflatten_paths

FREE = (
    "name",
    "data_dir",
    "data_root",
    "mesh",
    "log",
    "checkpoint",
    "curriculum",
    "tokenizer",
)  # keys that a restart may change
FREE_IN_DATA = ("workers", "time_limit", "max_bad_fraction")  # and of each stage's data
SHOWS_WITHIN = 20.0  # seconds until one host's file is seen by the others
TOWER = "elva/patch_embed/tower/"  # paths of an encoder-based model's vision tower


def run(
    config: ConfigDict,
    workdir: str | Path,
    profile: tuple[int, int] | None = None,
    console: Console | None = None,
) -> int:
    """Trains every stage of `config.curriculum` that is not finished in `workdir`.

    Writes workdir/config.json, workdir/tokenizer/, workdir/<stage>/{checkpoints/<step>, metrics.jsonl, tensorboard/, finished.json},
    workdir/curves.png, workdir/sessions.json and workdir/summary.json.

    Args:
      config: the run's configuration.
      workdir: where it lives.
      profile: first and last step to be traced, counted from 1 where this start goes on.
      console: where lines about the run and a progress bar go; None: standard output.

    Returns:
      the exit status: 0 at the end, 130 where Ctrl-C and 75 where SIGTERM stopped it (everything is saved).

    Raises:
      ConfigError: a config that cannot work, or one that cannot go on with what is in `workdir`.
      CheckpointError: weights to start from that are missing or do not fit.
      DataError: data that is missing or bad.
      TrainingError: training that does not work out.
    """
    validate(config)
    workdir = Path(workdir)
    mesh = make_mesh(config.mesh)
    for name in config.curriculum:
        check_stage(mesh, config.stages[name], f"stages.{name}.")
    console = console or Console(soft_wrap=True, quiet=jax.process_index() > 0)
    if jax.process_index() == 0 and restore_from_mirror(config.checkpoint.mirror, workdir):
        console.print(
            f"{workdir}: brought back from {config.checkpoint.mirror}",
            markup=False,
            highlight=False,
        )
    if config.checkpoint.mirror and jax.process_count() > 1:
        barrier("mirror")
    tokenizer = _open(config, workdir)
    model = config.model
    attention = choose_implementation(
        model.head_dim, model.dtype, model.attention, mesh.shape["context"]
    )
    console.print(f"{describe_mesh(mesh)}; attention: {attention}", markup=False, highlight=False)
    ledger, trace = Ledger(workdir), Profile(workdir / "profile", profile)
    status = 0
    say = partial(console.print, markup=False, highlight=False)
    with (
        StopSignal() as stop,
        Mirror(
            config.checkpoint.mirror, workdir, keep=config.checkpoint.keep, report=say
        ) as mirror,
    ):
        for name in config.curriculum:
            if _finished(workdir / name):
                console.print(f"{name}: finished", markup=False, highlight=False)
                continue
            status = _run_stage(
                config,
                name,
                workdir,
                tokenizer,
                mesh,
                console,
                stop=stop,
                ledger=ledger,
                profile=trace,
                mirror=mirror,
            )
            if status:
                break
            if jax.process_index() == 0:
                plots.draw(workdir, config)
    if jax.process_index() == 0:
        _summarise(workdir, config, ledger, console)
    return status


def _summarise(workdir: Path, config: ConfigDict, ledger: Ledger, console: Console) -> None:
    """Writes and prints what the run came to so far."""
    if not (totals := ledger.summary()):
        return
    stages = {
        name: lines[-1] for name in config.curriculum if (lines := read_metrics(workdir / name))
    }
    write_atomic(
        workdir / "summary.json", json.dumps({**totals, "stages": stages}, indent=2) + "\n"
    )
    console.print(f"{workdir}: {in_words(totals)}", markup=False, highlight=False)


def _run_stage(
    config: ConfigDict,
    name: str,
    workdir: Path,
    tokenizer: PreTrainedTokenizerBase,
    mesh,
    console: Console,
    **watchers: Any,
) -> int:
    """Returns what `loop.train` does, which also gets the `watchers`."""
    stage, folder = config.stages[name], workdir / name
    folder.mkdir(exist_ok=True)
    batches, steps = _open_data(config, name, tokenizer)
    objective = make_objective(config, name)
    setting = loop.set_up(config, name, objective, mesh, steps)
    weights = {} if has_checkpoint(folder) else _weights(config, name, workdir, setting, console)
    frozen = {"teacher": _teacher(config, name, workdir, mesh)} if guided(stage) else {}
    try:
        status = loop.train(
            config,
            name,
            folder,
            objective,
            setting,
            steps=steps,
            batches=batches,
            frozen=frozen,
            weights=weights,
            console=console,
            **watchers,
        )
    finally:
        batches.close()
    if saved_steps(folder)[-1:] == [steps] and jax.process_index() == 0:
        write_atomic(folder / "finished.json", json.dumps({"step": steps}) + "\n")
    return status


def _open_data(
    config: ConfigDict, name: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[BatchIterator, int]:
    """A stage's batches and its number of steps."""
    stage = config.stages[name]
    place = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if stage.kind == "teacher":
        batches = caption_batches(config, name, tokenizer, **place)
    else:
        size = config.teacher.image_size if guided(stage) else None
        batches = conversation_batches(config, name, tokenizer, teacher_size=size, **place)
    assert_equal_across_processes(
        f"stages.{name}.data.mixture", batches.get_state()["settings"]["mixture"]
    )
    if stage.steps:
        return batches, stage.steps
    per_step = float(stage.batch_size)
    if stage.kind != "teacher":
        per_step = conversations_per_step(config, name, tokenizer)
    return batches, math.ceil(stage.epochs * examples_per_epoch(config, name) / per_step)


def _open(config: ConfigDict, workdir: Path) -> PreTrainedTokenizerBase:
    """Makes the run's directory its own: the configuration, checked against an earlier one, and the tokenizer."""
    workdir.mkdir(parents=True, exist_ok=True)
    settings = workdir / "config.json"
    if settings.exists():
        _check_same(
            config_to_dict(config_from_dict(json.loads(settings.read_text()))),
            config_to_dict(config),
            workdir,
        )
    elif any((workdir / name).exists() for name in config.curriculum):
        raise ConfigError(f"{workdir}: holds stages but no config.json; choose another --workdir")
    folder = workdir / "tokenizer"
    tokenizer = load_tokenizer(
        folder if folder.is_dir() else config.tokenizer or Path(config.data_dir) / "tokenizer"
    )
    if len(tokenizer) > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is less than the tokenizer's {len(tokenizer)} tokens"
        )
    entries = ("config.json", "tokenizer", *config.curriculum)
    assert_equal_across_processes(
        f"--workdir {workdir}", [name for name in entries if (workdir / name).exists()]
    )  # all have looked before any writes
    if jax.process_index() == 0:
        if not folder.is_dir():
            temporary = workdir / "tokenizer.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            tokenizer.save_pretrained(temporary)
            temporary.rename(folder)
        write_atomic(settings, json.dumps(config_to_dict(config), indent=2) + "\n")
    assert_equal_across_processes(
        f"--workdir {workdir}, which all hosts must share", _appears(settings)
    )
    return tokenizer


def _appears(path: Path) -> bool:
    """Whether a file is there, or soon will be: shared storage may show it late."""
    end = time.monotonic() + SHOWS_WITHIN
    while not (there := path.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    return there


def _check_same(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    """Refuses a restart under a configuration that would not be the same run."""
    started = [name for name in old["curriculum"] if (workdir / name).exists()]
    if list(new["curriculum"][: len(started)]) != started:
        raise ConfigError(
            f"curriculum: {workdir} has started {', '.join(started)} in this order; later stages may change, these may not"
        )

    def relevant(config: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in config.items() if key not in (*FREE, "stages")}
        stages = {name: dict(config["stages"][name]) for name in started}
        for stage in stages.values():
            stage["data"] = {
                key: value for key, value in stage["data"].items() if key not in FREE_IN_DATA
            }
        return flatten_dict({**kept, "stages": stages}, sep=".")

    before, after = relevant(old), relevant(new)
    changed = sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    )
    if changed and started:
        listed = ", ".join(
            f"{key} (was {before.get(key)!r}, is {after.get(key)!r})" for key in changed[:5]
        )
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{workdir} was started with another configuration: {listed}{more}; set them back, or choose another --workdir"
        )


def _finished(folder: Path) -> bool:
    return (folder / "finished.json").exists()


def _weights(
    config: ConfigDict, name: str, workdir: Path, setting: loop.Setting, console: Console
) -> dict[str, Any]:
    """What a stage starts from: the stage of its kind before it, or `init_from`; parameters by path, where both have them.

    A vision tower of the model that is not among them is the teacher's.

    Raises:
      CheckpointError: a parameter of another shape.
      ConvertError: a Hugging Face folder that is damaged or does not fit.
    """
    stages, kind = list(config.curriculum), config.stages[name].kind
    before = [other for other in stages[: stages.index(name)] if config.stages[other].kind == kind]
    source = (
        workdir / before[-1]
        if before
        else config.init_from
        if kind == "elva"
        else config.teacher.init_from
    )
    targets = {
        path: leaf
        for path, leaf in flatten_paths(setting.shapes.params).items()
        if not is_factor(path)
    }  # factors start fresh
    if not source:
        return _tower(config, name, workdir, targets, console)
    loaded = load_params(source, targets, config, subtree="elva" if kind == "elva" else "vision")
    for path, there in loaded.params.items():
        here = targets[path]
        if here.shape != there.shape:
            raise CheckpointError(
                f"{source}: {path} is {there.dtype}{list(there.shape)}, stage {name} has {here.dtype}{list(here.shape)}"
            )
    if not loaded.params:
        raise CheckpointError(f"{source}: shares no parameter with stage {name}")
    missing = {path: leaf for path, leaf in targets.items() if path not in loaded.params}
    params = loaded.params | _tower(config, name, workdir, missing, console)
    note = f"{name}: starts from {source} ({loaded.origin})"
    for label, paths in (("fresh", targets.keys() - params.keys()), ("unused", loaded.unused)):
        if paths:
            note += f"; {label}: {', '.join(sorted(paths))}"
    console.print(note, markup=False, highlight=False)
    return params


def _tower(
    config: ConfigDict, name: str, workdir: Path, missing: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """The vision tower of an encoder-based model by path, as far as it is among the `missing` parameters."""
    targets = {
        path.replace(TOWER, "vision/"): leaf
        for path, leaf in missing.items()
        if path.startswith(TOWER)
    }
    if not targets:
        return {}
    params, source = _load_teacher(config, name, workdir, targets)
    console.print(f"{name}: takes its vision tower from {source}", markup=False, highlight=False)
    return {path.replace("vision/", TOWER, 1): leaf for path, leaf in params.items()}


def _teacher(config: ConfigDict, name: str, workdir: Path, mesh) -> Any:
    """The frozen vision tower for a guided stage."""
    everywhere = replicated(mesh)
    shapes = parameter_shapes(config, "teacher")
    targets = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)
        for path, shape in shapes.items()
    }
    return unflatten_paths(_load_teacher(config, name, workdir, targets)[0])["vision"]


def _load_teacher(
    config: ConfigDict, name: str, workdir: Path, targets: Mapping[str, Any]
) -> tuple[dict[str, Any], str | Path]:
    """Parameters of a vision tower by path, all of `targets`, and their source: `teacher.init_from`, or the last teacher stage before."""
    stages = list(config.curriculum)
    before = [
        other for other in stages[: stages.index(name)] if config.stages[other].kind == "teacher"
    ]
    if not (config.teacher.init_from or before):
        raise ConfigError(
            f"teacher.init_from: stage {name} needs a vision tower, which {config.init_from} does not have; set it"
        )
    source = config.teacher.init_from or workdir / before[-1]
    loaded = load_params(source, targets, config, subtree="vision").params
    for path, here in targets.items():
        if path not in loaded or loaded[path].shape != here.shape:
            there = list(loaded[path].shape) if path in loaded else "missing"
            raise CheckpointError(
                f"{source}: {path} is {there}, the teacher of this run has {list(here.shape)}"
            )
    return loaded, source
