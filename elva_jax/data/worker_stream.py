"""A stream of samples from worker processes that may be killed, for example for their memory.

A worker that is killed within a write leaves half a message, and its reader would wait for the rest
for ever. So a thread reads, and the caller looks at the workers while it waits:

    caller -> request -> thread: next(iterator) -> pipe of a worker
    caller <- result  <- thread, or every POLL_SECONDS: is each worker alive?
"""

from __future__ import annotations

import gc
import multiprocessing
import queue
import threading
from multiprocessing.process import BaseProcess
from typing import Any

import grain
from grain._src.python.dataset.transformations import process_prefetch

from elva_jax.errors import DataError
from elva_jax.utils.workers import shielded_from_signals

# A worker blocks until its last samples are read. To stop, Grain 0.2.18 waits 25 seconds for each
# worker, one after the other, then kills it; no public option changes that time.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1

POLL_SECONDS = 1.0
NAME = "grain-process-prefetch"  # the beginning of the name of Grain's worker processes


class WorkerStream:
    """Iterates over samples that Grain's workers decode.

    Args:
      iterator: starts its workers at its first element.
    """

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._workers: dict[int | None, BaseProcess] = {}
        with shielded_from_signals():  # the thread starts the workers
            threading.Thread(target=self._serve, name="samples", daemon=True).start()

    def __next__(self) -> Any:
        """The next sample.

        Raises:
          DataError: a worker has been killed.
        """
        self._requests.put("next")
        while True:
            try:
                sample, error = self._results.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._check()
                continue
            if error is not None:
                self._check()
                raise error
            return sample

    def close(self) -> None:
        """Stops the workers."""
        self._requests.put("end")
        if not self._killed():
            self._iterator.close()
            return
        for worker in self._workers.values():
            worker.kill()
            worker.join()
        # Closing the iterator, and at its end the interpreter, would wait for half a message: no
        # worker is left to close, and the pipes end with the writing ends that this process holds.
        for item in gc.get_objects():
            if type(item) is process_prefetch.ProcessPrefetchDatasetIterator:
                item._prefetch_process = None
                item._buffer._writer.close()

    def _serve(self) -> None:
        """The thread."""
        while self._requests.get() == "next":
            try:
                self._results.put((next(self._iterator), None))
            except BaseException as error:
                self._results.put((None, error))

    def _check(self) -> None:
        if killed := self._killed():
            raise DataError(
                f"a process that decodes data has ended ({killed.exitcode}; -9: it was killed,"
                " perhaps for its memory); use fewer data.workers or smaller media, and start again"
            )

    def _killed(self) -> BaseProcess | None:
        """A worker that has ended by itself."""
        for child in multiprocessing.active_children():
            if child.name.startswith(NAME):
                self._workers[child.pid] = child
        return next((worker for worker in self._workers.values() if worker.exitcode), None)
