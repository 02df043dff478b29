"""Stands in for the fused kernel where a program is compiled on a CPU and never run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax

_stand_in: ContextVar[Callable[..., jax.Array] | None] = ContextVar("_stand_in", default=None)


def stand_in() -> Callable[..., jax.Array] | None:
    """The function of `replaced_by` that is in use, if any."""
    return _stand_in.get()


@contextlib.contextmanager
def replaced_by(function: Callable[..., jax.Array]) -> Iterator[None]:
    """Attention that is traced inside calls `function(q, k, v)` instead.

    `elva plan` compiles programs for GPUs on a CPU, where the fused kernel does not exist.
    """
    token = _stand_in.set(function)
    try:
        yield
    finally:
        _stand_in.reset(token)
