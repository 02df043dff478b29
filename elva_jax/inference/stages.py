"""Where the time of an answer goes: reading, prefill, decoding.

    with measured() as seconds:
        chat.ask("What happens?")
    seconds  # {"read": 0.4, "prefill": 1.2, "decode": 0.8, "compile": 0.9}

Nothing is measured outside of `measured`, so that computation stays asynchronous.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax

from elva_jax.utils.compilation_cache import on_compilation

Stage = Literal["read", "prefill", "decode"]
STAGES: tuple[Stage, ...] = ("read", "prefill", "decode")

_seconds: ContextVar[dict[str, float] | None] = ContextVar("_seconds", default=None)


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measures what the calling thread does within it.

    Yields:
      seconds of each stage so far, and of those the seconds in which XLA compiled programs or read
      them from the compilation cache ("compile").
    """
    seconds = dict.fromkeys((*STAGES, "compile"), 0.0)

    def compiled(duration: float) -> None:
        if _seconds.get() is seconds:
            seconds["compile"] += duration

    token = _seconds.set(seconds)
    try:
        with on_compilation(compiled):
            yield seconds
    finally:
        _seconds.reset(token)


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Adds the time within it to a stage, if anyone measures."""
    seconds = _seconds.get()
    if seconds is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - start


def wait(arrays: Any) -> None:
    """Waits for the end of a stage's computation, if anyone measures."""
    if _seconds.get() is not None:
        jax.block_until_ready(arrays)
