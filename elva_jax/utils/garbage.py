"""When Python's garbage collector runs.

Imports and loading make hundreds of thousands of objects that stay. Collections on the way find
nothing and take a seventh of the processor time from the start to the first token.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


def collect_seldom() -> None:
    """Looks for garbage after 20,000 new objects, not 700: those of imports and of traces stay."""
    gc.set_threshold(20_000, 20, 20)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No collection within it; what exists at its end is exempt from all later ones."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
