"""Saving and restoring the state of training."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from elva_jax.checkpoints import checksums
from elva_jax.checkpoints.format import (
    FAILURES,
    ITEMS,
    Damaged,
    StepArgs,
    describe,
    open_reader,
    open_writer,
    reason_of,
    saved_steps,
    told_as_damage,
)
from elva_jax.checkpoints.state import TrainState
from elva_jax.errors import CheckpointError
from elva_jax.utils.trees import flatten_paths

SHOWN = 8  # most names listed in one error
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step that is being written
DELETED = ".deleted"  # ends the name of a step that is being removed


class Checkpoints:
    """The saved steps of one stage, `<workdir>/<stage>/checkpoints/<step>`; a context manager that waits for the last save.

    All methods are called by all processes alike, whose file system is the same.

    Args:
      folder: where the steps are.
      keep: newest steps kept; 0: all. Temporary ones do not count: the newest is kept as long as no other step is newer.
      on_error: stop | continue, what a save that failed does to the run.
      say: takes a line for whoever watches.
      saved: called with the directory of every step that is whole.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        on_error: str = "stop",
        say: Callable[[str], None] = print,
        saved: Callable[[Path], None] = lambda _: None,
    ):
        self._folder, self._keep, self._on_error, self._say = (
            Path(folder).absolute(),
            keep,
            on_error,
            say,
        )
        self._saved = saved
        self._pending: int | None = None  # the step that is being saved
        self._reason: str | None = None  # why it could not even be started
        self._temporary: dict[int, bool] = {}  # what is known of the steps on disk
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for entry in self._folder.iterdir():
                if TEMPORARY in entry.name or entry.name.endswith(DELETED):
                    shutil.rmtree(entry)
        _gather(None)  # the others wait for it
        self._writer = open_writer()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            with contextlib.suppress(
                *FAILURES
            ):  # an error of its own would hide the one that ended the run
                self._writer.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step."""
        steps = _gather(saved_steps(self._folder.parent))[0]
        return steps[-1] if steps else None

    def save(
        self,
        step: int,
        state: TrainState,
        data: Any,
        config: ConfigDict,
        stage: str,
        *,
        temporary: bool = False,
    ) -> None:
        """Starts saving in the background; the arrays are copied before this returns, so the state may be donated next.

        Args:
          step: batches seen.
          state: the whole training state.
          data: this process's JSON-able data position.
          config: the run's configuration.
          stage: name of the stage.
          temporary: whether the next step saved takes its place.

        Raises:
          CheckpointError: this save or the one before failed, and `on_error` is stop.
        """
        self.settle()
        args = StepArgs(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(flatten_paths(state.replace(params=None))),
            data=ocp.args.JsonSave({"processes": _gather(data)}),
            meta=ocp.args.JsonSave(describe(config, stage, step) | {"temporary": temporary}),
        )
        self._pending = step
        try:
            self._writer.save(self._folder / str(step), args=args)
        except FAILURES as error:
            self._reason = reason_of(error)
            self.look()

    def look(self) -> None:
        """Takes note of a save that has ended meanwhile. Several processes do so at the next save, where all of them wait anyway.

        Raises:
          CheckpointError: it failed, and `on_error` is stop.
        """
        if self._pending is None or jax.process_count() > 1:
            return
        if self._reason is None:
            try:
                self._writer.check_for_errors()
            except FAILURES as error:
                self._reason = reason_of(error)
        if self._reason is not None or (self._folder / str(self._pending)).is_dir():
            self.settle()

    def settle(self) -> None:
        """Waits for the save that is under way, and removes the steps that it replaces.

        Raises:
          CheckpointError: it failed, and `on_error` is stop.
        """
        if self._pending is None:
            return
        try:
            self._writer.wait_until_finished()
        except FAILURES as error:
            self._reason = self._reason or reason_of(error)
        reasons = [reason for reason in _gather(self._reason) if reason]
        step, self._pending, self._reason = self._pending, None, None
        if not reasons:
            self._prune()
            self._saved(self._folder / str(step))
            return
        if jax.process_index() == 0:
            for entry in self._folder.glob(f"{step}{TEMPORARY}*"):
                _remove(entry)
        self._writer = open_writer()  # of the old one nothing is known
        before = self.latest
        good = (
            "there is no step before" if before is None else f"step {before} is the last good one"
        )
        problem = f"{self._folder}: step {step} could not be saved ({reasons[0]}); {good}"
        if self._on_error == "stop":
            raise CheckpointError(
                f"{problem}: make room and start again, or set checkpoint.on_error=continue"
            )
        self._say(f"{problem}; training goes on")

    def restore(self, target: TrainState) -> tuple[TrainState, list[Any]]:
        """Restores the newest step that is whole onto the shardings of `target`, a TrainState of ShapeDtypeStruct.

        Damaged steps are renamed to `<step>.corrupt`, and a line says so; the only one there is keeps its name.

        Returns:
          the state, and the data positions of the processes that saved it, in their order.

        Raises:
          CheckpointError: nothing saved, other parameters, shapes or dtypes, or nothing but damaged files.
        """
        while (step := self.latest) is not None:
            where = self._folder / str(step)
            found = _gather(
                checksums.damage(where, ITEMS, jax.process_index(), jax.process_count())
            )
            problem = next((line for line in found if line), None)
            try:
                if problem is None:
                    return self._read(where, target)
            except Damaged as error:
                if (
                    jax.process_count() > 1
                ):  # the others may have read it, and cannot be called back
                    raise
                problem = error.reason
            if len(saved_steps(self._folder.parent)) == 1:
                raise CheckpointError(
                    f"{where}: is damaged ({problem}), and no other step is left; remove it to start the stage anew"
                )
            self._set_aside(where, problem)
        raise CheckpointError(f"{self._folder}: no complete checkpoint")

    def _read(self, where: Path, target: TrainState) -> tuple[TrainState, list[Any]]:
        rest = target.replace(params=None)
        wanted = {"params": target.params, "optimizer": flatten_paths(rest)}
        with told_as_damage(where), open_reader() as reader:
            saved = {
                item: flatten_paths(metadata.tree)
                for item, metadata in reader.metadata(where).item_metadata.items()
                if item in wanted
            }
        for item, tree in wanted.items():
            _check(saved[item], flatten_paths(tree), f"{where}/{item}")
        args = {item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
        with told_as_damage(where), open_reader() as reader:
            out = reader.restore(
                where, args=ocp.args.Composite(data=ocp.args.JsonRestore(), **args)
            )
        leaves = [out["optimizer"][name] for name in flatten_paths(rest)]
        state = jax.tree.unflatten(jax.tree.structure(rest), leaves).replace(params=out["params"])
        return state, out["data"]["processes"]

    def _set_aside(self, where: Path, problem: str) -> None:
        number, name = 1, f"{where.name}.corrupt"
        while (self._folder / name).exists():
            number += 1
            name = f"{where.name}.corrupt-{number}"
        _gather(None)  # nobody reads it any more, and all have found the same name free
        if jax.process_index() == 0:
            where.rename(self._folder / name)
        self._say(
            f"{where}: is damaged ({problem}) and now called {name}; going on from the step before"
        )
        _gather(None)

    def _prune(self) -> None:
        """Removes what `keep` and a newer step make superfluous; under another name first, so that half a step never looks whole."""
        if jax.process_index() > 0:
            return
        steps = saved_steps(self._folder.parent)
        for step in steps:
            if step not in self._temporary:
                self._temporary[step] = _is_temporary(self._folder / str(step))
        kept = [step for step in steps if not self._temporary[step]]
        for step in steps:
            old = self._keep and step in kept[: -self._keep]
            if old or (step not in kept and step < steps[-1]):
                deleted = (self._folder / str(step)).rename(self._folder / f"{step}{DELETED}")
                shutil.rmtree(deleted, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Removes what is left of a save that failed; threads of it may still be writing for a moment, and the next start looks again."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _is_temporary(where: Path) -> bool:
    """Whether a step was saved to be replaced; one that is not readable stays."""
    try:
        return json.loads((where / "meta" / "metadata").read_text()).get("temporary", False)
    except (OSError, ValueError):
        return False


def _check(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Orbax casts and truncates silently, so names, shapes and dtypes are compared first."""
    wrong = [f"{name} is missing" for name in wanted if name not in saved]
    wrong += [f"{name} is not part of this run" for name in saved if name not in wanted]
    for name, leaf in wanted.items():
        if name in saved:
            here, there = (
                (tuple(leaf.shape), np.dtype(leaf.dtype).name),
                (tuple(saved[name].shape), np.dtype(saved[name].dtype).name),
            )
            if here != there:
                wrong.append(
                    f"{name} is {there[1]}{list(there[0])}, this run has {here[1]}{list(here[0])}"
                )
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"{where} does not match the configuration: {'; '.join(wrong[:SHOWN])}{more}"
        )


def _gather(value: Any) -> list[Any]:
    """Every process's JSON-able value, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded).reshape(jax.process_count(), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
