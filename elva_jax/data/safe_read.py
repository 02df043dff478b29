"""Safe reading: a bad record is counted with its reason instead of ending the run or build."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

from elva_jax.data.example import Example
from elva_jax.errors import DataError, ElvaError, RecordError, VideoError, printable
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit

T = TypeVar("T")
MIN_RECORDS = 100  # the fraction of bad records is taken of at least this many
MOST_REASONS = 100  # distinct reasons that are counted separately


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record that cannot be used.

    Attributes:
      key: name of the record.
      reason: why the record cannot be used.
      medium: path of the bad medium; "": no medium is bad, or it has no path.
    """

    key: str
    reason: str
    _: dataclasses.KW_ONLY
    medium: str = ""

    def __post_init__(self) -> None:
        for name in ("key", "reason"):  # both are shown in terminals, and come from files
            object.__setattr__(self, name, printable(getattr(self, name)))

    def to_json(self) -> dict[str, str]:
        """A dict of the fields that are not empty."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}


def read_safely(
    name: str,
    seconds: float,
    read: Callable[[], Example],
    use: Callable[[Example], T],
    setting: str = "",
) -> T | Rejected:
    """Returns `use(read())`, or `Rejected` if a call fails or both together take too long.

    Args:
      name: name of the record until `read` has returned its example.
      seconds: time limit; 0: no limit.
      read: returns the example.
      use: converts the example to the result.
      setting: name of the limit in the reason, such as " (data.time_limit)".
    """
    key = name

    def both() -> T:
        nonlocal key
        example = read()
        key = example.key
        return use(example)

    try:
        return run_with_time_limit(seconds, both)
    except TimeLimitExceeded as error:
        return Rejected(key, f"{error} to read{setting}")
    except VideoError as error:
        return Rejected(key, error.reason, medium="" if error.name == key else error.name)
    except RecordError as error:
        return Rejected(error.name, error.reason)
    except ElvaError as error:
        return Rejected(key, str(error).removeprefix(printable(f"{key}: ")))
    except Exception as error:  # decoders may raise any type; the limit on bad records reveals bugs
        return Rejected(key, f"{type(error).__name__}: {error}"[:200])


class RejectionLog:
    """Counts rejected records by reason, and stops a run that has too many.

    Args:
      max_fraction: fraction of rejected records above which `add` raises an error.

    Attributes:
      seen: number of records read so far.
      reasons: number of rejected records by reason.
      first: first rejected record of each reason.
    """

    def __init__(self, max_fraction: float):
        self._max_fraction = max_fraction
        self.restore(0, {}, {})

    def restore(self, seen: int, reasons: Mapping[str, int], first: Mapping[str, str]) -> None:
        """Continues from saved counts."""
        self.seen, self.reasons, self.first = seen, Counter(reasons), dict(first)

    @property
    def dropped(self) -> int:
        """Number of rejected records so far."""
        return self.reasons.total()

    def add(self, rejected: Rejected) -> None:
        """Counts a rejected record, which `seen` already includes.

        Raises:
          DataError: the fraction of rejected records exceeds its limit.
        """
        known = rejected.reason in self.reasons or len(self.reasons) < MOST_REASONS
        reason = rejected.reason if known else "other reasons"
        self.reasons[reason] += 1
        self.first.setdefault(reason, rejected.key)
        if self.dropped > self._max_fraction * max(self.seen, MIN_RECORDS):
            listed = "; ".join(
                f"{n} x {reason} (first: {self.first[reason]})"
                for reason, n in self.reasons.most_common(5)
            )
            raise DataError(
                f"{self.dropped} of {self.seen} records are bad, over the limit "
                f"data.max_bad_fraction = {self._max_fraction}: {listed}"
            )
