"""Regular expressions of users and foreign files: their matches have a time limit."""

from __future__ import annotations

import re
import time

import regex  # as `re`, with a time limit

from elva_jax.errors import ElvaError, first_line
from elva_jax.utils.numbers import shown

SECONDS = 2.0  # for all matches of a Matcher
# What `re` takes and `regex` reads in another way: fuzzy matches {e<=1}, classes [[:alpha:]].
OTHER = re.compile(r"(?<!\\)(?:\{[^}\d,]|\[:)")


class Matcher:
    """Searches patterns, all of them within one time limit.

    Args:
      where: the file or key of the patterns, in messages.
      error: type of the errors.

    Its methods raise an ElvaError of that type: a pattern is not a regular expression, or takes
    too long.
    """

    def __init__(self, where: str, error: type[ElvaError]):
        self._where, self._error = where, error
        self._end = time.monotonic() + SECONDS

    def search(self, pattern: str, text: str) -> regex.Match[str] | None:
        """As `re.search`."""
        self.check(pattern)
        return self._run(pattern, text, whole=False)

    def fullmatch(self, pattern: str, text: str) -> regex.Match[str] | None:
        """As `regex.fullmatch`."""
        return self._run(pattern, text, whole=True)

    def check(self, pattern: str) -> None:
        """Refuses what `re` refuses, and what `regex` reads in another way."""
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as problem:
            raise self._refused(pattern, f"is not a regular expression: {problem}") from None
        if found := OTHER.search(pattern):
            raise self._refused(pattern, f"cannot be used: write a backslash before '{found[0]}'")

    def _run(self, pattern: str, text: str, *, whole: bool) -> regex.Match[str] | None:
        try:
            run = regex.fullmatch if whole else regex.search
            return run(pattern, text, timeout=max(self._end - time.monotonic(), 1e-3))
        except TimeoutError:
            raise self._refused(pattern, "cannot be used: it takes too long to match") from None
        except (regex.error, RecursionError) as problem:
            raise self._refused(pattern, f"cannot be used ({first_line(problem)})") from None

    def _refused(self, pattern: str, why: str) -> ElvaError:
        return self._error(f"{self._where}: the pattern '{shown(pattern)}' {why}")
