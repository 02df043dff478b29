"""Named settings of token merging, of which a request may choose one.

    half=merge_ratios=0.5
    late=merge_layers=14;merge_policies=both;merge_thresholds=0.6;merge_ratios=0.3

After the name stand keys of `model` with their values, as a configuration has them; the others are
those of the model. One value counts for all merging layers.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from elva_jax.config.check import check_key, nearest
from elva_jax.config.schema import Config, ModelConfig
from elva_jax.config.validate import check_model
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers
from elva_jax.utils.numbers import shown

MOST_PROFILES = 8  # each compiles programs of its own
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TAKEN = ("true", "false", "on", "off", "none")  # other meanings of a request's `merging`
BOOLEANS = {"true": True, "false": False}
_INT, _FLOAT = numbers.whole(0), numbers.real(-numbers.LARGEST_FLOAT)
KEYS: Mapping[str, Callable[[str], Any]] = {
    "merge_layers": _INT,
    "merge_policies": str,
    "merge_thresholds": _FLOAT,
    "merge_ratios": _FLOAT,
    "merge_lines": BOOLEANS.__getitem__,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergingProfile:
    """Settings of merging by name.

    Attributes:
      name: as requests call them.
      values: keys of `ModelConfig` that differ from the model's.
    """

    name: str
    values: Mapping[str, Any]

    def apply(self, config: Config) -> Config:
        """The configuration with these settings.

        Raises:
          ConfigError: they do not fit the model.
        """
        count = len(self.values.get("merge_layers", config.model.merge_layers))
        values: dict[str, Any] = {
            key: value * count if isinstance(value, tuple) and len(value) == 1 < count else value
            for key, value in self.values.items()
        }
        found = dataclasses.replace(config, model=dataclasses.replace(config.model, **values))
        try:
            check_model(found)
        except ConfigError as error:
            raise ConfigError(f"--merging-profile {self.name}: {error}") from None
        return found


def parse_profile(text: str) -> MergingProfile:
    """Reads NAME=KEY=VALUE;KEY=VALUE….

    Raises:
      ConfigError: a name that cannot be, or a wrong key or value.
    """
    name, _, settings = text.partition("=")
    if not NAME.fullmatch(name) or name.lower() in TAKEN:
        raise ConfigError(
            f"'{shown(name)}' cannot name merging settings; use letters, digits, '_', '.' and '-',"
            f" at most 64, and none of {', '.join(TAKEN)}"
        )
    values: dict[str, Any] = {}
    for setting in filter(None, map(str.strip, settings.split(";"))):
        key, equals, value = map(str.strip, setting.partition("="))
        if key not in KEYS:
            raise ConfigError(f"{name}: no such key '{shown(key)}'{nearest(key, KEYS)}")
        if not equals or not value:
            raise ConfigError(f"{name}: {key} needs a value, such as {key}=…")
        if key in values:
            raise ConfigError(f"{name}: {key} has two values; give it once")
        values[key] = _value(name, key, value)
    if not values:
        raise ConfigError(f"{name}: needs settings, such as {name}=merge_ratios=0.5")
    return MergingProfile(name=name, values=values)


def check_profiles(profiles: Sequence[MergingProfile], known: Collection[str] = ()) -> None:
    """Refuses two of one name, and too many; `known` are names that are there already.

    Raises:
      ConfigError: naming them.
    """
    names = [*known, *(profile.name for profile in profiles)]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(f"--merging-profile {name}: is there twice; give it once")
    if len(names) > MOST_PROFILES:
        raise ConfigError(
            f"--merging-profile: {len(names)} profiles, but each compiles programs of its own;"
            f" give at most {MOST_PROFILES}"
        )


def refusal(value: Any, names: Collection[str]) -> str:
    """The refusal of a choice of merging that is none of true, false and the names."""
    known = f"true, false or {', '.join(names)}" if names else "true or false"
    return f"must be {known}, got {shown(value)}"


def _value(name: str, key: str, text: str) -> Any:
    """The value of a key, with its type and range."""
    inner = text[1:-1] if text[0] + text[-1] in ("()", "[]") else text
    words = [word.strip().strip("'\"") for word in inner.split(",") if word.strip()]
    try:
        found = tuple(KEYS[key](word) for word in words)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{name}: {key} {error}") from None
    except KeyError:
        raise ConfigError(f"{name}: {key} must be true or false, got '{shown(text)}'") from None
    if key == "merge_lines" and len(found) != 1:
        raise ConfigError(f"{name}: {key} must be true or false, got '{shown(text)}'")
    value = found[0] if key == "merge_lines" else found
    check_key(ModelConfig, key, value, f"{name}: {key}")
    return value
