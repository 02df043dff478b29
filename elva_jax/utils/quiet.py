"""Keeps notices of other libraries from a user's terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

LOGGERS = ("absl", "orbax", "transformers")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within it, other libraries log nothing; their failures reach the caller as exceptions."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
