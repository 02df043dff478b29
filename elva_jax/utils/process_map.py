"""A `map` over processes that notices when one of them is killed, whatever it was doing.

The processes of a `concurrent.futures` pool write their results to one pipe. If one is killed while
it writes, the pool waits for the rest of its result forever, and so do the other writers. Here each
process has a pipe of its own, which ends with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from elva_jax.utils.workers import shielded_from_signals

CHUNK = 32  # items per message
AHEAD = 2  # chunks that a process has at a time, so that it never waits for this one
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


class ProcessKilledError(Exception):
    """A process ended before its result was complete."""


@dataclass(frozen=True)
class _Worker:
    process: Any
    pipe: Connection
    asked: deque[int] = field(default_factory=deque)  # numbers of the chunks that it has


@contextlib.contextmanager
def process_map(workers: int, prepare: Callable[[], None]) -> Iterator[Map]:
    """Gives a `map` whose results are in order; its processes end with the block.

    The processes start at the first use. An exception of the mapped function is raised here. One
    iterator must be read to its end before the next is made.

    Args:
      workers: number of processes.
      prepare: called first in each.

    Raises:
      ProcessKilledError: a process was killed; raised by the iterator.
    """
    started: list[_Worker] = []

    def mapped(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        if not started:
            with shielded_from_signals():
                started.extend(_start(prepare) for _ in range(workers))
        chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
        for results in _in_order(started, function, chunks):
            yield from results

    try:
        yield mapped
    except BaseException:
        for worker in started:
            worker.process.terminate()  # instead of waiting for what it has
        raise
    finally:
        for worker in started:
            worker.pipe.close()  # the others read the end of their pipes
        for worker in started:
            worker.process.join()


def _start(prepare: Callable[[], None]) -> _Worker:
    # spawn: threads of JAX or of other libraries in this process make fork unsafe.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, prepare), daemon=True)
    process.start()
    theirs.close()  # otherwise the pipe would outlive the process
    return _Worker(process, ours)


def _in_order(
    workers: Sequence[_Worker], function: Callable[[Any], Any], chunks: Sequence[Any]
) -> Iterator[list[Any]]:
    """The results of each chunk."""
    left, done, wanted = deque(enumerate(chunks)), dict[int, list[Any]](), 0

    def ask(worker: _Worker) -> None:
        if left:
            number, chunk = left.popleft()
            worker.asked.append(number)
            with _noticing_its_end():
                worker.pipe.send((function, chunk))

    for worker in [*workers] * AHEAD:
        ask(worker)
    while wanted < len(chunks):
        ready = wait([worker.pipe for worker in workers])
        for worker in [worker for worker in workers if worker.pipe in ready]:
            with _noticing_its_end():
                results, error = worker.pipe.recv()
            if error is not None:
                raise error
            done[worker.asked.popleft()] = results
            ask(worker)
        while wanted in done:
            yield done.pop(wanted)
            wanted += 1


@contextlib.contextmanager
def _noticing_its_end() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise ProcessKilledError("a process ended before its result was complete") from error


def _work(pipe: Connection, prepare: Callable[[], None]) -> None:
    """Answers chunks until the pipe ends."""
    prepare()
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, chunk = pipe.recv()
            try:
                answer: tuple[Any, Exception | None] = ([function(item) for item in chunk], None)
            except Exception as error:  # raised by the other process
                answer = (None, error)
            pipe.send(answer)
