"""Starting and stopping worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from elva_jax.utils import notices

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def shielded_from_signals() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in processes started within; this process decides when they end.

    Terminals and schedulers send these signals to a whole process group. This process does not lose
    any: another thread receives them, or this thread does at the end of the block.
    """
    resource_tracker.ensure_running()  # if it were started within, it would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(*_: int) -> None:
    """Makes a decoding process ignore signals to its group and end together with its parent."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    notices.show_in_worker()
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process as soon as its parent process has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
