"""Shows the package's log as lines on standard error while a command runs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

VARIABLE = "ELVA_NOTICES"  # set while a command runs, for the worker processes that it starts
LOGGER = logging.getLogger("elva_jax")


class _Handler(logging.StreamHandler):
    """The handler of this module."""


def show_in_worker() -> None:
    """Shows warnings in a worker process of a command."""
    if os.environ.get(VARIABLE) and not _shown():
        LOGGER.addHandler(_Handler(sys.stderr))


@contextlib.contextmanager
def shown(level: int = logging.WARNING) -> Iterator[None]:
    """Within it, what the library logs at `level` or above goes to standard error, a line each."""
    before = LOGGER.level, LOGGER.propagate, os.environ.get(VARIABLE)
    handler = None if _shown() else _Handler(sys.stderr)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    os.environ[VARIABLE] = "1"
    if handler:
        LOGGER.addHandler(handler)
    try:
        with warnings.catch_warnings():
            # Pillow's, of pictures beyond half of what `video.probe.check_size` allows.
            warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
            yield
    finally:
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]
        if before[2] is None:
            os.environ.pop(VARIABLE, None)
        if handler:
            LOGGER.removeHandler(handler)


def _shown() -> bool:
    return any(isinstance(handler, _Handler) for handler in LOGGER.handlers)
