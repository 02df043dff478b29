"""SIGINT and SIGTERM end a command within two seconds, whatever it does and whatever it inherited.

    signal -> KeyboardInterrupt in the main thread: files are closed, the command prints its line
           -> a thread that waits on a pipe: after GRACE_SECONDS it ends the process

The thread is needed because Python runs signal handlers between two bytecodes of the main thread
only. A compilation, a connection in C++ or an import that swallows the exception would otherwise
keep the process alive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 1.2  # from the signal to the end, for the main thread to clean up
LOST_SECONDS = 0.02  # until a lost signal is repeated: the callback has ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_statuses = {number: 128 + number for number in SIGNALS}
_name = "elva"  # how the command is called in its last line
_at_once = threading.Event()  # nobody would catch an exception, or one has been raised already
_at_once.set()
_told = threading.Lock()  # taken by the thread that prints the last line
# Called with the signal before it ends the process by force, for these seconds at most.
_tell: list[tuple[Callable[[int], None], float]] = []
_installed = False


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def end_on_signals() -> None:
    """Installs the handlers and the thread, in the main thread of a command's process.

    A script that starts a command in the background lets it ignore SIGINT, and a parent may have
    blocked either signal; both are undone. Calling it again does nothing.
    """
    global _installed
    if _installed:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _installed = True


@contextlib.contextmanager
def raised_as_exceptions() -> Iterator[None]:
    """Within the block, the first signal is an Interrupted in the main thread."""
    _at_once.clear()
    try:
        yield
    finally:
        _at_once.set()


def name_command(name: str, *, terminated: int = 128 + signal.SIGTERM) -> None:
    """Sets the command's name in its last line, and its exit status after SIGTERM."""
    global _name
    _name = name
    _statuses[signal.SIGTERM] = terminated


@contextlib.contextmanager
def telling(tell: Callable[[int], None], seconds: float) -> Iterator[None]:
    """Within the block, `tell` is called with the signal before it ends the process by force.

    The process ends after `seconds`, whether `tell` has returned or not.
    """
    entry = (tell, seconds)
    _tell.append(entry)
    try:
        yield
    finally:
        _tell.remove(entry)


def announce(error: KeyboardInterrupt, more: str = "") -> int:
    """Prints the command's last line, once per process, and returns its exit status."""
    number = signal.Signals(getattr(error, "number", signal.SIGINT))
    if not _installed or _told.acquire(blocking=False):
        print(f"{_name}: {WORDS[number]}{more}", file=sys.stderr, flush=True)
    return _statuses[number]


def write_line(text: str) -> None:
    """Writes a line with the command's name to standard error, from any thread."""
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, f"{_name}: {text}\n".encode())


def end(status: int) -> NoReturn:
    """Ends the process at once: threads and exit handlers of libraries may wait for long."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        sys.stdout.flush()
    os._exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _at_once.is_set() or _imports(frame):
        _end(number)
    _at_once.set()
    raise Interrupted(number)


def repeat(lost: BaseException | None) -> bool:
    """Repeats a signal whose exception was lost in a callback or finalizer, which run anywhere.

    Args:
      lost: what `sys.unraisablehook` is told.

    Returns:
      Whether it was the exception of a signal.
    """
    if not isinstance(lost, Interrupted):
        return False
    _at_once.clear()
    threading.Timer(LOST_SECONDS, os.kill, (os.getpid(), lost.number)).start()
    return True


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is running: libraries lose an exception there, or crash."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(reader: int) -> None:
    """The thread: reads the number of each signal, and ends the process unless others handle it."""
    deferred = 0
    while True:
        (number,) = os.read(reader, 1)
        if number not in SIGNALS:
            continue
        if signal.getsignal(number) is not _interrupt:  # a training loop, which stops by itself
            deferred += number == signal.SIGINT
            if number != signal.SIGINT or deferred < 2:
                continue
        threading.Timer(GRACE_SECONDS, _end, (number,)).start()


def _end(number: int) -> NoReturn:
    if _told.acquire(blocking=False):
        os.write(2, f"{_name}: {WORDS[signal.Signals(number)]}\n".encode())
    for tell, seconds in tuple(_tell):
        thread = threading.Thread(target=tell, args=(number,), daemon=True)
        thread.start()
        thread.join(seconds)
    os._exit(_statuses[signal.Signals(number)])
