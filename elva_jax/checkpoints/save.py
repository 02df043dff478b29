"""Saving and restoring the state of training."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from elva_jax.checkpoints.checksums import find_damage
from elva_jax.checkpoints.format import (
    ITEMS,
    STORAGE_ERRORS,
    DamagedStepError,
    explain_damage,
    saved_steps,
    short_reason,
)
from elva_jax.checkpoints.handlers import (
    StepArgs,
    StepHandler,
    open_reader,
    open_writer,
    plain_arrays,
    save_args,
    step_metadata,
)
from elva_jax.checkpoints.state import TrainState
from elva_jax.config.schema import Config
from elva_jax.errors import CheckpointError
from elva_jax.parallel.collectives import all_gather_json
from elva_jax.utils.read import read_json
from elva_jax.utils.trees import flatten_paths

MAX_LISTED = 8  # names in one error
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step that is being written
DELETED = ".deleted"  # suffix of a step that is being removed


class Checkpoints:
    """The saved steps of one stage; a context manager that waits for the last save.

    Every process calls every method, and all processes see the same file system.

    Args:
      folder: `<workdir>/<stage>/checkpoints`.
      keep: the number of newest steps to keep; 0: all. Temporary steps do not count: the newest of
        them is kept until any later step is saved.
      on_error: what a failed save does to the run.
      report: takes one line of text.
      on_saved: called with the directory of every step that is complete.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        on_error: Literal["stop", "continue"] = "stop",
        report: Callable[[str], None] = print,
        on_saved: Callable[[Path], None] = lambda _: None,
    ):
        self._folder, self._keep, self._on_error = Path(folder).absolute(), keep, on_error
        self._report, self._on_saved = report, on_saved
        self._pending: int | None = None  # the step that is being saved
        self._reason: str | None = None  # why that save has failed
        self._is_temporary: dict[int, bool] = {}  # read once from each step on disk
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for entry in self._folder.iterdir():
                if TEMPORARY in entry.name or entry.name.endswith(DELETED):
                    shutil.rmtree(entry)
        all_gather_json(None)  # the others wait for process 0
        self._writer = open_writer()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            # An error while closing would hide the one that ended the run.
            with contextlib.suppress(*STORAGE_ERRORS):
                self._writer.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step."""
        steps = all_gather_json(saved_steps(self._folder.parent))[0]
        return steps[-1] if steps else None

    def save(
        self,
        step: int,
        state: TrainState,
        data: Any,
        config: Config,
        stage: str,
        *,
        temporary: bool = False,
    ) -> None:
        """Starts to save in the background; once it returns, the state may be donated.

        Args:
          step: batches seen.
          state: the whole training state.
          data: this process's position in the data, JSON-able.
          config: the run's configuration.
          stage: the name of the stage.
          temporary: whether the next saved step replaces this one.

        Raises:
          CheckpointError: this save or the one before failed, and `on_error` is "stop".
        """
        self.wait()
        args = StepArgs(
            params=ocp.args.PyTreeSave(state.params, save_args=save_args(state.params)),
            optimizer=ocp.args.StandardSave(flatten_paths(state.replace(params=None))),
            data=ocp.args.JsonSave({"processes": all_gather_json(data)}),
            meta=ocp.args.JsonSave(step_metadata(config, stage, step) | {"temporary": temporary}),
        )
        self._pending = step
        try:
            self._writer.save(self._folder / str(step), args=args)
        except STORAGE_ERRORS as error:
            self._reason = short_reason(error)
            self.poll()

    def poll(self) -> None:
        """Completes a save that has ended in the meantime, without waiting for one that has not.

        With several processes it does nothing: they find out at the next save, where all wait.

        Raises:
          CheckpointError: the save failed, and `on_error` is "stop".
        """
        if self._pending is None or jax.process_count() > 1:
            return
        if self._reason is None:
            try:
                self._writer.check_for_errors()
            except STORAGE_ERRORS as error:
                self._reason = short_reason(error)
        if self._reason is not None or (self._folder / str(self._pending)).is_dir():
            self.wait()

    def wait(self) -> None:
        """Waits for the save that is in progress, and removes the steps that it replaces.

        Raises:
          CheckpointError: the save failed, and `on_error` is "stop".
        """
        if self._pending is None:
            return
        try:
            self._writer.wait_until_finished()
        except STORAGE_ERRORS as error:
            self._reason = self._reason or short_reason(error)
        reasons = [reason for reason in all_gather_json(self._reason) if reason]
        step, self._pending, self._reason = self._pending, None, None
        if reasons:
            self._handle_failure(step, reasons[0])
        else:
            self._remove_old()
            self._on_saved(self._folder / str(step))

    def _handle_failure(self, step: int, reason: str) -> None:
        if jax.process_index() == 0:
            self._remove_unfinished()
        self._writer = open_writer()  # the state of the old one is unknown
        before = self.latest
        good = (
            "there is no step before" if before is None else f"step {before} is the last good one"
        )
        problem = f"{self._folder}: step {step} could not be saved ({reason}); {good}"
        if self._on_error == "stop":
            raise CheckpointError(
                f"{problem}: free some space and start again, or set checkpoint.on_error=continue"
            )
        self._report(f"{problem}; training continues")

    def restore(self, target: TrainState) -> tuple[TrainState, list[Any]]:
        """Restores the newest undamaged step.

        Damaged steps are renamed to `<step>.corrupt` and reported. If only one step is left and it
        is damaged, it keeps its name.

        Args:
          target: TrainState of ShapeDtypeStruct, with the shardings to restore onto.

        Returns:
          the state, and the data positions of the processes that saved it, in order.

        Raises:
          CheckpointError: there is no step, only damaged ones, or one with other parameters, shapes
            or dtypes.
        """
        while (step := self.latest) is not None:
            path = self._folder / str(step)
            problem = next(filter(None, all_gather_json(find_damage(path, ITEMS))), None)
            try:
                if problem is None:
                    return self._read(path, target)
            except DamagedStepError as error:
                if jax.process_count() > 1:  # the others may have read it already
                    raise
                problem = error.reason
            if len(saved_steps(self._folder.parent)) == 1:
                raise CheckpointError(
                    f"{path}: is damaged ({problem}), and no other step is left; remove it to start"
                    " the stage from the beginning"
                )
            self._set_aside(path, problem)
        raise CheckpointError(f"{self._folder}: no complete checkpoint")

    def _read(self, path: Path, target: TrainState) -> tuple[TrainState, list[Any]]:
        rest = target.replace(params=None)
        wanted = {"params": target.params, "optimizer": flatten_paths(rest)}
        with explain_damage(path), open_reader() as reader:
            saved = {
                item: flatten_paths(metadata.tree)
                for item, metadata in reader.metadata(path).item_metadata.items()
                if item in wanted
            }
        for item, tree in wanted.items():
            _check_equal(saved[item], flatten_paths(tree), f"{path}/{item}")
        args = {item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
        with explain_damage(path), open_reader() as reader:
            out = reader.restore(path, args=ocp.args.Composite(data=ocp.args.JsonRestore(), **args))
        leaves = [out["optimizer"][name] for name in flatten_paths(rest)]
        state = jax.tree.unflatten(jax.tree.structure(rest), leaves).replace(params=out["params"])
        return state, out["data"]["processes"]

    def _set_aside(self, path: Path, problem: str) -> None:
        candidates = itertools.chain(("",), (f"-{number}" for number in itertools.count(2)))
        names = (f"{path.name}.corrupt{suffix}" for suffix in candidates)
        name = next(name for name in names if not (self._folder / name).exists())
        all_gather_json(None)  # no process reads the step any more, and all have chosen the name
        if jax.process_index() == 0:
            path.rename(self._folder / name)
        self._report(
            f"{path}: is damaged ({problem}) and now called {name}; continuing from the step before"
        )
        all_gather_json(None)

    def _remove_old(self) -> None:
        """Removes steps beyond `keep`, and temporary ones that a newer step replaces."""
        if jax.process_index() > 0:
            return
        steps = saved_steps(self._folder.parent)
        for step in steps:
            if step not in self._is_temporary:
                self._is_temporary[step] = _read_temporary(self._folder / str(step))
        kept = [step for step in steps if not self._is_temporary[step]]
        for step in steps:
            old = self._keep and step in kept[: -self._keep]
            if old or (step not in kept and step < steps[-1]):
                # Renamed first, so that half a step never looks complete.
                deleted = (self._folder / str(step)).rename(self._folder / f"{step}{DELETED}")
                shutil.rmtree(deleted, ignore_errors=True)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Removes what failed saves have left; no save is in progress.

        Their threads may still be writing for a moment, and longer on a busy machine: what appears
        after this is removed by the next call.
        """
        for _ in range(50):
            unfinished = [entry for entry in self._folder.iterdir() if TEMPORARY in entry.name]
            if not unfinished:
                return
            for entry in unfinished:
                shutil.rmtree(entry, ignore_errors=True)
            time.sleep(0.1)


def save_weights(
    folder: str | Path, params: Any, config: Config, stage: str, *, step: int = 0
) -> None:
    """Saves weights alone as a step, for inference and `init_from`.

    It needs little memory beyond the parameters.

    Args:
      folder: a stage's directory.
      params: the stage's parameter tree, or parts of it.
      config: the configuration of the weights.
      stage: the name of the stage.
      step: their number.
    """
    # Orbax must be allowed the largest array; a higher limit only lets it hold several copies.
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    arrays = plain_arrays(save_concurrent_gb=max(-(-largest // 10**9), 1))
    handlers = {"params": arrays, "meta": ocp.JsonCheckpointHandler()}
    meta = ocp.args.JsonSave(step_metadata(config, stage, step))
    with ocp.Checkpointer(StepHandler(**handlers)) as writer:
        path = Path(folder).absolute() / "checkpoints" / str(step)
        arrays_args = ocp.args.PyTreeSave(params, save_args=save_args(params))
        writer.save(path, args=StepArgs(params=arrays_args, meta=meta))


def _read_temporary(step: Path) -> bool:
    """Whether a step was saved as temporary; False if that cannot be read, so that it is kept."""
    try:
        return read_json(step / "meta" / "metadata", CheckpointError).get("temporary", False)
    except CheckpointError:
        return False


def _check_equal(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Compares names, shapes and dtypes, because Orbax casts and truncates silently."""

    def kind(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    wrong = [f"{name} is missing" for name in wanted if name not in saved]
    wrong += [f"{name} is not part of this run" for name in saved if name not in wanted]
    wrong += [
        f"{name} is {kind(saved[name])}, this run has {kind(leaf)}"
        for name, leaf in wanted.items()
        if name in saved and kind(saved[name]) != kind(leaf)
    ]
    if wrong:
        more = f" and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
        raise CheckpointError(
            f"{where} does not match the configuration: {'; '.join(wrong[:MAX_LISTED])}{more}"
        )
