"""Decoding processes: how they start, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from grain._src.python.dataset.transformations import process_prefetch

# A worker whose last samples nobody reads cannot end by itself: Grain 0.2.18 waits for it, one
# worker after the other, 25 seconds each, then kills it, and has no public option for that time.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def shielded_from_signals() -> Iterator[None]:
    """Processes started within ignore SIGINT and SIGTERM; this process decides when they end.

    Terminals and schedulers send these signals to a whole group of processes. This process loses
    none of them: they reach another thread, or this one at the end of the block.
    """
    resource_tracker.ensure_running()  # of multiprocessing: starting it within would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(*_: int) -> None:
    """Makes a decoding process ignore signals to its group, and end with its parent."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process as soon as its parent process has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
