"""Giving up on a medium that takes too long."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Impatient(Exception):
    """The time is over."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work()`, or what it raises.

    The work runs on a thread of its own, which is left behind when the time is over: Python code in it then ends at its next step, and
    a call into a decoder that never returns can do no more harm than to keep a thread.

    Args:
      seconds: the most it may take; 0: no limit, on the caller's own thread.
      work: takes nothing.

    Raises:
      Impatient: it takes longer.
    """
    if not seconds:
        return work()
    outcome: list[tuple[bool, T | BaseException]] = []

    def run() -> None:
        try:
            outcome.append((True, work()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
        raise Impatient(f"takes longer than {seconds:g} s")
    done, value = outcome[0]
    if done:
        return value
    raise value
