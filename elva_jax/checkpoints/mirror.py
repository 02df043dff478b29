"""A second copy of a run on other storage, in which every step is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from elva_jax.checkpoints.format import saved_steps

STAGE_FILES = ("metrics.jsonl", "finished.json")  # what a restart reads beside a stage's steps
RUN_FILES = ("config.json", "tokenizer")
UNFINISHED = ".unfinished"  # suffix of a copy that is not complete


class Mirror:
    """Copies the saved steps of a run in the background, from the first process.

    A context manager that waits for the last copy. A step whose turn comes after a newer one was
    saved is skipped. A copy that fails is reported and does not stop the run.

    Args:
      folder: where the copy is; "" for none.
      workdir: the run's.
      keep: the number of newest steps of each stage to keep; 0: all.
      report: takes one line of text.
    """

    def __init__(self, folder: str, workdir: Path, *, keep: int, report: Callable[[str], None]):
        self._folder, self._workdir = Path(folder).absolute(), workdir.absolute()
        self._keep, self._report = keep, report
        self._worker = ThreadPoolExecutor(1) if folder and jax.process_index() == 0 else None
        self._newest: dict[Path, Path] = {}  # by the folder of the steps

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker:
            self._worker.shutdown()

    def copy(self, step: Path) -> None:
        """Starts to copy the directory of a saved step."""
        if self._worker:
            self._newest[step.parent] = step
            self._worker.submit(self._copy, step)

    def _copy(self, step: Path) -> None:
        if step != self._newest[step.parent]:
            return
        try:
            self._copy_step(step)
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or error
            self._report(
                f"{self._folder}: step {step.name} could not be copied there ({reason});"
                " training continues"
            )

    def _copy_step(self, step: Path) -> None:
        stage = step.parents[1]
        target = self._folder / step.relative_to(self._workdir)
        if not target.is_dir():
            _copy_complete(step, target)
        files = [stage / name for name in STAGE_FILES] + [
            self._workdir / name for name in RUN_FILES
        ]
        for source in files:
            copy = self._folder / source.relative_to(self._workdir)
            if source.exists() and not copy.is_dir():  # the tokenizer's folder never changes
                _copy_complete(source, copy)
        if self._keep:
            for old in saved_steps(target.parents[1])[: -self._keep]:
                if old < int(step.name):
                    removed = target.with_name(f"{old}{UNFINISHED}")
                    shutil.rmtree(target.with_name(str(old)).rename(removed))


def restore_from_mirror(folder: str, workdir: Path) -> bool:
    """Copies a run back where `workdir` holds none, and says whether it did.

    Safe to repeat after an interruption: config.json, which marks a run, is copied last.
    """
    copy = Path(folder)
    if not folder or (workdir / "config.json").exists() or not (copy / "config.json").exists():
        return False
    ignored = shutil.ignore_patterns(f"*{UNFINISHED}", "config.json")
    shutil.copytree(copy, workdir, ignore=ignored, dirs_exist_ok=True)
    _copy_complete(copy / "config.json", workdir / "config.json")
    return True


def _copy_complete(source: Path, target: Path) -> None:
    """Copies a file or folder under another name, and renames it when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + UNFINISHED)
    if source.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)
    else:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
