"""One record, or the reason why it cannot be used: nothing that a file can do may end a run or a build of millions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from elva_jax.data.example import Example
from elva_jax.errors import ElvaError, RecordError, VideoError
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit

T = TypeVar("T")


class Rejected(NamedTuple):
    """A record that cannot be used."""

    key: str
    reason: str
    medium: str = ""  # the one that is bad, where it has a path

    def to_json(self) -> dict[str, str]:
        """The fields that say something."""
        return {name: value for name, value in self._asdict().items() if value}


def attempt(
    name: str,
    seconds: float,
    read: Callable[[], Example],
    use: Callable[[Example], T],
    setting: str = "",
) -> T | Rejected:
    """What `use` makes of the example that `read` gives; `Rejected` where either fails or both take too long.

    Args:
      name: what the record is called until its example is there.
      seconds: that it may take; 0: no limit.
      read: gives the example.
      use: takes it.
      setting: names the limit behind the reason, such as " (data.time_limit)".
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
        return Rejected(key, error.reason, "" if error.name == key else error.name)
    except RecordError as error:
        return Rejected(error.name, error.reason)
    except ElvaError as error:
        return Rejected(key, str(error).removeprefix(f"{key}: "))
    except (
        Exception
    ) as error:  # a decoder's own failure is one record's; the limit on bad records stops a bug
        return Rejected(key, f"{type(error).__name__}: {error}"[:200])
