"""A time limit for work that may hang, such as reading a damaged video."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TimeLimitExceeded(Exception):
    """The work took longer than its limit."""


def run_with_time_limit(seconds: float, work: Callable[[], T]) -> T:
    """Returns the result of `work()`, or raises what it raises.

    The work runs in a thread of its own, which is abandoned after the limit: Python code ends at
    its next bytecode, and a call into a native decoder that never returns only keeps a thread.

    Args:
      seconds: the limit; 0: none, and the work runs in the caller's thread.
      work: a function without arguments.

    Raises:
      TimeLimitExceeded: the work takes longer.
    """
    if not seconds:
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    # Under a debugger or coverage, CPython 3.11 spins forever in every traced thread while such an
    # exception waits for a thread in native code; then Python code is left running, too.
    traced = sys.gettrace() or threading.gettrace()
    if not (traced and sys.version_info < (3, 12)):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        )
    raise TimeLimitExceeded(f"takes longer than {seconds:g} s")
