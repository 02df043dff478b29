"""Builds the missing shards of a plan, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import connection

from rich.console import Console

from elva_jax.errors import DataError
from elva_jax.tools.datasets.build import shard as shards
from elva_jax.tools.datasets.build.plan import Plan
from elva_jax.tools.datasets.build.prepare import Preparation
from elva_jax.tools.progress import Advance, record_bar
from elva_jax.utils import notices
from elva_jax.utils.failures import portable, wants_debug
from elva_jax.utils.workers import STOPPING, end_with_parent, shielded_from_signals

POLL = 0.2  # seconds between updates of the progress


def run(
    plan: Plan,
    preparation: Preparation,
    wanted: Sequence[int],
    workers: int,
    console: Console | None = None,
) -> None:
    """Builds the wanted shards that are not finished; the files do not depend on `workers`.

    Raises:
      DataError: a shard cannot be written, or a worker died.
    """
    todo = [k for k in wanted if not shards.is_finished(plan, k)]
    total, left = (sum(len(plan.part(k)) for k in some) for some in (wanted, todo))
    label = f"{plan.name} {plan.split}"
    with record_bar(label, total, done=total - left, console=console) as advance:
        if workers == 1 or len(todo) < 2:
            for k in todo:
                shards.build(plan, preparation, k, advance)
        else:
            _run_processes(plan, preparation, todo, min(workers, len(todo)), advance)


def _run_processes(
    plan: Plan, preparation: Preparation, todo: list[int], workers: int, advance: Advance
) -> None:
    # Threads of libraries in this process make fork unsafe.
    context = multiprocessing.get_context("spawn")
    taken, done, failures = context.Value("q", 0), context.Value("q", 0), context.SimpleQueue()
    arguments = (plan, preparation, todo, taken, done, failures)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    seen = 0
    try:
        with shielded_from_signals():  # until a worker has its own handlers
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


def _failure(plan: Plan, code: int, failures) -> Exception:
    if not failures.empty():
        return failures.get()
    how = f"failed with status {code}"
    if code < 0:
        how = f"was ended by signal {-code}: out of memory, or a decoder that crashed"
    return DataError(f"{plan.folder}: a worker process {how}; start again to continue")


def _work(plan: Plan, preparation: Preparation, todo: list[int], taken, done, failures) -> None:
    """The worker process: builds shards that no other worker has taken, until none is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # runs `finally`: no unfinished file
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    notices.show_in_worker()
    end_with_parent()

    def report() -> None:
        with done.get_lock():
            done.value += 1

    while True:
        with taken.get_lock():
            place = taken.value
            taken.value += 1
        if place >= len(todo):
            return
        try:
            shards.build(plan, preparation, todo[place], report)
        except Exception as error:
            if wants_debug():
                traceback.print_exc()
            failures.put(portable(error))
            sys.exit(1)
