"""Builds the shards of a plan that are not there yet, over processes, with a bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from elva_jax.data.workers import end_with_parent
from elva_jax.errors import DataError, ElvaError
from elva_jax.tools.datasets.build import shard as shards
from elva_jax.tools.datasets.build.plan import Plan
from elva_jax.tools.datasets.build.prepare import Preparation

POLL = 0.2  # seconds between two looks at the workers' progress


def run(
    plan: Plan,
    preparation: Preparation,
    wanted: Sequence[int],
    workers: int,
    console: Console | None = None,
) -> None:
    """Builds those of the wanted shards that are not finished. The files do not depend on the number of workers.

    Raises:
      DataError: a shard cannot be written, or a worker died.
    """
    todo = [k for k in wanted if not shards.is_finished(plan, k)]
    total, left = (sum(len(plan.part(k)) for k in some) for some in (wanted, todo))
    with progress(f"{plan.name} {plan.split}", total, total - left, console) as advance:
        if workers == 1 or len(todo) < 2:
            for k in todo:
                shards.build(plan, preparation, k, lambda: advance(1))
        else:
            _over_processes(plan, preparation, todo, min(workers, len(todo)), advance)


@contextlib.contextmanager
def progress(
    label: str, total: int, done: int = 0, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar of records on a terminal; gives what moves it on."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        bar = bars.add_task(label, total=total, completed=done)
        yield lambda number: bars.advance(bar, number)


def _over_processes(
    plan: Plan,
    preparation: Preparation,
    todo: list[int],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    context = multiprocessing.get_context(
        "spawn"
    )  # threads of libraries in this process make fork unsafe
    taken, done, failures = context.Value("q", 0), context.Value("q", 0), context.SimpleQueue()
    arguments = (plan, preparation, todo, taken, done, failures)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    seen = 0
    try:
        for process in processes:
            process.start()
        while running := [process.sentinel for process in processes if process.exitcode is None]:
            connection.wait(running, POLL)
            now = done.value
            advance(now - seen)
            seen = now
            for process in processes:
                if process.exitcode:
                    raise _failure(plan, process.exitcode, failures)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _failure(plan: Plan, code: int, failures) -> ElvaError:
    if not failures.empty():
        return failures.get()
    how = (
        f"was ended by signal {-code}: out of memory, or a decoder that crashed"
        if code < 0
        else f"failed with status {code}"
    )
    return DataError(f"{plan.folder}: a worker process {how}; start again to go on")


def _work(plan: Plan, preparation: Preparation, todo: list[int], taken, done, failures) -> None:
    """A worker process: builds the next shard that no other one has taken, until there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no unfinished file behind
    end_with_parent()

    def advance() -> None:
        with done.get_lock():
            done.value += 1

    while True:
        with taken.get_lock():
            place = taken.value
            taken.value += 1
        if place >= len(todo):
            return
        try:
            shards.build(plan, preparation, todo[place], advance)
        except ElvaError as error:
            failures.put(error)
            sys.exit(1)
