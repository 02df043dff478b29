"""Ranges of numbers that users give: on the command line, in configurations, files and calls."""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elva_jax.errors import ConfigError

# Counts become int32 and reals float32 where a program computes with them.
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
# Bounds of what is allocated by count, far above any video, context or machine of today.
MOST_FRAMES = 1_000_000
MOST_PIXELS = 65_536  # of an edge
MOST_WIDTH = 2**24  # of a layer or a vocabulary
MOST_LAYERS = 65_536  # or heads
MOST_TOKENS = 2**24
MOST_WORKERS = 4096
MOST_SECONDS = 1e7  # 115 days
MOST_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that one setting can have; as `type=` of an option it reads them from text.

    Attributes:
      kind: int or float; a float setting takes whole numbers too.
      minimum: the least number, or with `open` the bound below all of them.
      maximum: the greatest number.
      open: whether `minimum` itself is excluded.
    """

    kind: type[int] | type[float]
    minimum: float
    maximum: float
    open: bool = False

    def __str__(self) -> str:
        """Both ends, such as (0, 1]."""
        return f"{'(' if self.open else '['}{_plain(self.minimum)}, {_plain(self.maximum)}]"

    def problem(self, value: float) -> str | None:
        """The fault of a number of the right type; None: it has none."""
        if self.kind is float and not math.isfinite(value):
            return f"must be a finite number in {self}, got {value}"
        if value < self.minimum or (self.open and value == self.minimum):
            if self.minimum == 0 and not self.open:
                return f"cannot be negative, got {shown(value)}"
            least = "above" if self.open else "at least"
            return f"must be {least} {_plain(self.minimum)}, got {shown(value)}"
        if value > self.maximum:
            return f"must be in {self}, got {shown(value)}"
        return None

    def check(self, name: str, value: Any) -> None:
        """Refuses a value of a call.

        Raises:
          ConfigError: naming the setting and its range.
        """
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError
            number = operator.index(value) if self.kind is int else float(value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(
                f"{name}: must be {self._noun} in {self}, got {type(value).__name__} {shown(value)}"
            ) from None
        if problem := self.problem(number):
            raise ConfigError(f"{name}={shown(value)}: {problem.partition(', got ')[0]}")

    def __call__(self, text: str) -> Any:
        """Reads an option's text, for argparse."""
        try:
            if not text.isascii():  # int() and float() read the digits of every script
                raise ValueError
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be {self._noun} in {self}, got '{text[:40]}'"
            ) from None
        if problem := self.problem(value):
            raise argparse.ArgumentTypeError(problem)
        return value

    @property
    def _noun(self) -> str:
        return "a whole number" if self.kind is int else "a number"


def whole(minimum: int, maximum: int = LARGEST_INT) -> Range:
    """The whole numbers from `minimum` to `maximum`."""
    return Range(kind=int, minimum=minimum, maximum=maximum)


def real(minimum: float, maximum: float = LARGEST_FLOAT, *, open: bool = False) -> Range:
    """The reals from `minimum` to `maximum`; with `open`, above `minimum`."""
    return Range(kind=float, minimum=minimum, maximum=maximum, open=open)


def check_fields(settings: object, ranges: Mapping[str, Range]) -> None:
    """Refuses values of a dataclass's fields; None is what was not given.

    Raises:
      ConfigError: naming the field and its range.
    """
    for name, allowed in ranges.items():
        if (value := getattr(settings, name)) is not None:
            allowed.check(name, value)


def _plain(bound: float) -> str:
    """A bound without the digits of its binary form."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def shown(value: object) -> str:
    """A value in a message: one short line, whatever it is."""
    try:
        text = " ".join(str(value).split())
    except ValueError:  # an int of more digits than Python converts
        return "a number of more than 4300 digits"
    return text if len(text) <= 80 else f"{text[:80]}…"


FRAMES, EDGE, TOKENS = whole(1, MOST_FRAMES), whole(1, MOST_PIXELS), whole(1, MOST_TOKENS)
WORKERS, ROWS = whole(1, MOST_WORKERS), whole(1, MOST_ROWS)
SHARE, POSITIVE, TEMPERATURE = real(0, 1, open=True), real(0, open=True), real(0)
SECONDS = real(0, MOST_SECONDS, open=True)
RATE = real(0, 1e6)
SEED = whole(-(2**63), 2**63 - 1)
ASKING = {  # fields of the settings that ask many questions
    "limit": whole(1),
    "num_frames": FRAMES,
    "batch_size": ROWS,
    "max_new_tokens": TOKENS,
    "prefill_chunk": whole(0, MOST_TOKENS),
}
