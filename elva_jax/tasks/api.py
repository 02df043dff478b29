"""Training as a function of the library."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict
from rich.console import Console

from elva_jax.config.schema import Config
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.training.train import run
from elva_jax.utils.quiet import quiet_libraries


@quiet_libraries()
def train(
    config: ConfigDict | Config,
    workdir: str | Path,
    *,
    progress: Callable[[str], None] | Literal["terminal"] | None = None,
    profile: tuple[int, int] | None = None,
) -> int:
    """Trains every stage of `config.curriculum` that is not finished in `workdir`.

    Started again with the same workdir it continues at the last saved step, bitwise equal to a run
    that was never interrupted. docs/architecture.md lists the files that it writes.

    Args:
      config: the run's configuration, from `load_config`.
      workdir: where checkpoints, metrics and plots go.
      progress: called with each line about the run, such as `print`; "terminal": lines and a
        progress bar on standard output; None: nothing is shown.
      profile: first and last step to be traced to workdir/profile, counted from 1 at this start.

    Returns:
      0 at the end, 130 where Ctrl-C and 75 where SIGTERM stopped it; everything is saved then.

    Raises:
      ConfigError: a configuration that cannot work, or that contradicts what is in `workdir`.
      CheckpointError: weights to start from that are missing or do not fit.
      DataError: data that is missing or bad.
      TrainingError: losses that stay non-finite, or tokens that do not fit into a merge bucket.

    Example:
      >>> import elva_jax
      >>> config = elva_jax.load_config("configs/tiny.py:smoke")
      >>> config.curriculum
      ('teacher', 'image', 'video', 'sft')
      >>> status = elva_jax.train(config, "runs/tiny", progress=print)  # doctest: +SKIP
    """
    file: Any = _Lines(progress) if callable(progress) else None
    console = None if progress is None else Console(file=file, soft_wrap=True)
    return run(config, workdir, ELVA, profile=profile, console=console)


class _Lines(io.StringIO):
    """A text file that hands every line to a function."""

    def __init__(self, receive: Callable[[str], None]) -> None:
        super().__init__()
        self._receive, self._open = receive, ""

    def write(self, text: str) -> int:
        *lines, self._open = (self._open + text).split("\n")
        for line in lines:
            self._receive(line)
        return len(text)
