"""A progress bar of records for the tools that run for hours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from elva_jax.utils.terminal import is_watched


class Advance(Protocol):
    """The bar's callback."""

    def __call__(self, number: int = 1, label: str | None = None) -> None:
        """Moves the bar by a number of records, and changes its label if one is given."""


@contextlib.contextmanager
def record_bar(
    label: str, total: int, *, done: int = 0, console: Console | None = None
) -> Iterator[Advance]:
    """Shows a bar on a terminal (default: standard error), and nothing elsewhere."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not is_watched(console)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=total, completed=done)

        def advance(number: int = 1, label: str | None = None) -> None:
            progress.update(task, advance=number, description=label)

        yield advance
