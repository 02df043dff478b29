"""Counts the programs that a thread has compiled."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from jax import monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_counts: Counter[int] = Counter()  # by thread
_registered = threading.Lock()


def _count(event: str, duration_secs: float, **kwargs: Any) -> None:
    del duration_secs, kwargs
    if event == _EVENT:
        _counts[threading.get_ident()] += 1


def count_this_thread() -> int:
    """The number of programs that the calling thread has compiled since the first call."""
    # JAX has no way to take a listener back, so there is one for the whole process.
    if _registered.acquire(blocking=False):
        monitoring.register_event_duration_secs_listener(_count)
    return _counts[threading.get_ident()]
