"""A second copy of a run on other storage, in which every step is there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from elva_jax.checkpoints.format import saved_steps

BESIDE = ("metrics.jsonl", "finished.json")  # files of a stage that a restart reads
SHARED = ("config.json", "tokenizer")  # and of the run
UNFINISHED = ".unfinished"


class Mirror:
    """Copies the saved steps of a run in the background; only the first process does. A context manager that waits for the last copy.

    A step that is overtaken by a newer one before its turn is left out. A copy that fails is told, and harms nothing.

    Args:
      folder: where the copy is; "": nowhere.
      workdir: of the run.
      keep: newest steps of each stage that the copy keeps, one at least; 0: all.
      say: takes a line for whoever watches.
    """

    def __init__(self, folder: str, workdir: Path, keep: int, say: Callable[[str], None]):
        self._folder, self._workdir, self._keep, self._say = (
            Path(folder).absolute(),
            workdir.absolute(),
            keep,
            say,
        )
        self._worker = ThreadPoolExecutor(1) if folder and jax.process_index() == 0 else None
        self._newest: Path | None = None

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_) -> None:
        if self._worker:
            self._worker.shutdown()

    def copy(self, step: Path) -> None:
        """Begins to copy the directory of a saved step."""
        if self._worker:
            self._newest = step
            self._worker.submit(self._copy, step)

    def _copy(self, step: Path) -> None:
        if step != self._newest:
            return
        try:
            stage = self._folder / step.parents[1].relative_to(self._workdir)
            target = stage / "checkpoints" / step.name
            if not target.is_dir():
                _copy_whole(step, target)
            for source in (
                *(step.parents[1] / name for name in BESIDE),
                *(self._workdir / name for name in SHARED),
            ):
                there = self._folder / source.relative_to(self._workdir)
                if source.exists() and not there.is_dir():  # folders, the tokenizer's, never change
                    _copy_whole(source, there)
            for old in saved_steps(stage)[: -self._keep or None] if self._keep else ():
                if old < int(step.name):
                    shutil.rmtree(
                        (stage / "checkpoints" / str(old)).rename(
                            target.with_name(f"{old}{UNFINISHED}")
                        )
                    )
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or error
            self._say(
                f"{self._folder}: step {step.name} could not be copied there ({reason}); training goes on"
            )


def fetch(folder: str, workdir: Path) -> bool:
    """Brings a run back from its copy where `workdir` is empty; config.json, by which a run is known, comes last. Safe to repeat.

    Returns:
      whether there was something to bring.
    """
    copy = Path(folder)
    if not folder or (workdir / "config.json").exists() or not (copy / "config.json").exists():
        return False
    shutil.copytree(
        copy,
        workdir,
        ignore=shutil.ignore_patterns(f"*{UNFINISHED}", "config.json"),
        dirs_exist_ok=True,
    )
    _copy_whole(copy / "config.json", workdir / "config.json")
    return True


def _copy_whole(source: Path, target: Path) -> None:
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
