"""ELVA's own keys of a request: `merging`, and frames of two sizes.

{"merging": false}    {"merging": "half"}    {"high_frames": 8, "low_frames": 24}
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from elva_jax.config.merging_profiles import MergingProfile, refusal
from elva_jax.config.schema import Config
from elva_jax.errors import ConfigError, RequestError
from elva_jax.models.elva import merging_of
from elva_jax.ops.merging import Merging
from elva_jax.utils import numbers

Profiles = Mapping[str, Merging]  # settings of merging by the name that requests have for them
# Whether the model's merging layers act, the name of a profile, or others instead.
MergingChoice = bool | str | Merging
MERGING = "merging"
HYBRID: Mapping[str, numbers.Range | None] = {  # fields of `Hybrid`, and numbers in them
    "high_frames": numbers.whole(0, numbers.MOST_FRAMES),
    "low_frames": numbers.whole(0, numbers.MOST_FRAMES),
    "high_edge": numbers.EDGE,
    "low_edge": numbers.EDGE,
    "policy": None,
}
KEYS = (MERGING, *HYBRID)


def open_profiles(config: Config, given: Sequence[MergingProfile]) -> dict[str, Merging]:
    """The merging of each profile, for the model of a configuration.

    Raises:
      ConfigError: one that does not fit the model.
    """
    return {profile.name: merging_of(profile.apply(config).model) for profile in given}


def read_merging(values: Mapping[str, Any], names: Collection[str]) -> bool | str | None:
    """The merging that a request asks for: on, off, the name of a profile, or None.

    Raises:
      RequestError: something else, or the name of no profile.
    """
    merging = values.get(MERGING)
    if (
        merging is None
        or isinstance(merging, bool)
        or (isinstance(merging, str) and merging in names)
    ):
        return merging
    raise RequestError(MERGING, refusal(merging, names))


def chosen_merging(merging: MergingChoice, profiles: Profiles) -> bool | Merging:
    """The merging that a choice stands for.

    Raises:
      ConfigError: the name of no profile.
    """
    if not isinstance(merging, str):
        return merging
    if merging not in profiles:
        raise ConfigError(f"{MERGING}: {refusal(merging, profiles)}")
    return profiles[merging]


def read_hybrid(values: Mapping[str, Any], of_media: Iterable[int | None]) -> dict[str, int | str]:
    """The fields of a `Hybrid` that a request has.

    Args:
      values: the request.
      of_media: the number of frames that each of its media asks for, if any.

    Raises:
      RequestError: a wrong value, or fields beside a number of frames.
    """
    given = {name: values[name] for name in HYBRID if values.get(name) is not None}
    if given and (values.get("frames") is not None or any(of_media)):
        raise RequestError(
            next(iter(given)),
            "does not go together with a number of frames; give high_frames and low_frames",
        )
    for name, value in given.items():
        try:
            if allowed := HYBRID[name]:
                allowed.check(name, value)
            elif not isinstance(value, str):
                raise ConfigError(f"{name}: must be text")
        except ConfigError as error:
            raise RequestError(next(iter(given)), str(error)) from None
    return given
