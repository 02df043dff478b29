"""A check that runs while its result is not needed yet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def checking(check: Callable[[], None]) -> Iterator[None]:
    """Runs a check in a thread while the block works; the block has not ended before the check.

    Args:
      check: raises if the files that the block reads are damaged.

    Raises:
      Exception: what the check raises, also in place of an error of the block: the check says why
        the block could not read its files.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            check()
        except Exception as error:
            errors.append(error)

    # A daemon, so that Ctrl-C within the block ends the program at once.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        thread.join()
        if errors:
            raise errors[0] from None
        raise
    thread.join()
    if errors:
        raise errors[0]
