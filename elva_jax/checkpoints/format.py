"""A saved step on disk: the only files that know Orbax are this one and the two that write and read with it, `checkpoint` and `saved_run`.

One step of a stage, `<workdir>/<stage>/checkpoints/<step>`, holds four items, each of which can be read without the others:
  params     the parameter tree, all that inference needs
  optimizer  the rest of the TrainState as a flat {path: array}, so that no optax class name is written to disk
  data       JSON, one entry a process: where the data iterator stands, and the open window of metrics
  meta       JSON: the configuration, the stage, library versions, the number of processes, whether it is kept

A step is written to a folder of another name, summed (`integrity`), and gets its number as its name when all of that is on disk.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import optax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

import elva_jax
from elva_jax.checkpoints import checksums
from elva_jax.config.serialize import config_to_dict
from elva_jax.errors import CheckpointError

ITEMS = ("params", "optimizer", "data", "meta")
FAILURES = (OSError, ValueError, RuntimeError)  # what Orbax raises where storage fails it


class StepHandler(ocp.CompositeCheckpointHandler):
    """Adds checksums to what a step's items have written, before the step gets its name."""

    def finalize(self, directory) -> None:  # of the first process alone, when all have written
        super().finalize(directory)
        checksums.write(Path(directory))


@ocp.args.register_with_handler(StepHandler, for_save=True, for_restore=True)
class StepArgs(ocp.args.Composite):
    """Orbax finds a handler by the type of its arguments."""


class Damaged(CheckpointError):
    """Files that cannot be read, and the short reason."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def saved_steps(folder: str | Path) -> list[int]:
    """The complete steps of a stage's directory, in order (a save gets its number as its name when it is complete)."""
    steps = Path(folder) / "checkpoints"
    return (
        sorted(int(entry.name) for entry in steps.iterdir() if entry.name.isdigit())
        if steps.is_dir()
        else []
    )


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a stage's directory holds a complete step."""
    return bool(saved_steps(folder))


def _handlers(items: Sequence[str]) -> dict[str, Any]:
    kinds = {"params": ocp.StandardCheckpointHandler, "optimizer": ocp.StandardCheckpointHandler}
    return {item: kinds.get(item, ocp.JsonCheckpointHandler)() for item in items}


def open_writer() -> ocp.AsyncCheckpointer:
    """Writes whole steps in the background."""
    return ocp.AsyncCheckpointer(StepHandler(**_handlers(ITEMS)))


def open_reader(items: Sequence[str] = ITEMS) -> ocp.Checkpointer:
    """Reads these items of a step, and looks at no other."""
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers(items)))


def reason_of(error: BaseException) -> str:
    """What the operating system said, where it is in an error from below; otherwise its first line, or its type where it has none."""
    if found := re.search(r"([^:\n]+) \[os_error_code=", str(error)):
        return found[1].strip()
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextlib.contextmanager
def told_as_damage(where: Path) -> Iterator[None]:
    """Turns what Orbax raises on missing or broken files into one line."""
    try:
        yield
    except (ValueError, KeyError, OSError, AttributeError) as error:
        reason = reason_of(error)
        raise Damaged(
            f"{where}: cannot be read ({reason}); if it is damaged, remove it to go on from the one before",
            reason,
        ) from error


def describe(config: ConfigDict, stage: str, step: int) -> dict[str, Any]:
    """What the item `meta` says of a step."""
    return {
        "config": config_to_dict(config),
        "stage": stage,
        "step": step,
        "processes": jax.process_count(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    modules = {"elva_jax": elva_jax, "jax": jax, "flax": flax, "optax": optax, "orbax": ocp}
    return {name: module.__version__ for name, module in modules.items()}
