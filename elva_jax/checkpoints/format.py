"""A saved step on disk.

    <workdir>/<stage>/checkpoints/<step>/
      params/         the parameter tree: all that inference needs
      optimizer/      the rest of the TrainState as a flat {path: array}, so that the names of optax
                      classes are not written to disk
      data/           JSON, one entry per process: the state of the data iterator, and the metrics
                      since the last report
      meta/           JSON: configuration, stage, library versions, number of processes, whether the
                      step is temporary
      checksums.json

Each item can be read without the others. A step is written under a temporary name, gets its
checksums, and is renamed to its number when all of that is on disk.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from elva_jax.errors import CheckpointError, first_line

STEP = re.compile("0|[1-9][0-9]*")  # the name of a step's folder
ITEMS = ("params", "optimizer", "data", "meta")
STORAGE_ERRORS = (OSError, ValueError, RuntimeError)  # what Orbax raises when storage fails


class DamagedStepError(CheckpointError):
    """The files of a step cannot be read; `reason` is the short form."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def saved_steps(folder: str | Path) -> list[int]:
    """The complete steps in a stage's directory, in order: only they have a number as name."""
    steps = Path(folder) / "checkpoints"
    if not steps.is_dir():
        return []
    return sorted(int(entry.name) for entry in steps.iterdir() if STEP.fullmatch(entry.name))


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a stage's directory holds a complete step."""
    return bool(saved_steps(folder))


def short_reason(error: BaseException) -> str:
    """The operating system's message inside an error, else its first line, else its type."""
    before, found, _ = str(error).partition(" [os_error_code=")
    reason = before.splitlines()[-1].rpartition(":")[2].strip() if found and before else ""
    return reason or first_line(error)


@contextlib.contextmanager
def explain_damage(step: Path) -> Iterator[None]:
    """Turns what Orbax raises on missing or broken files into a DamagedStepError."""
    try:
        yield
    except (ValueError, KeyError, OSError, AttributeError) as error:
        reason = short_reason(error)
        raise DamagedStepError(
            f"{step}: cannot be read ({reason}); if it is damaged, remove it to continue from the"
            " step before",
            reason,
        ) from error
