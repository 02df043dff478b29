"""The three forms of a configuration: ConfigDict (users), Config (code) and JSON (files)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from elva_jax.config import schema
from elva_jax.config.check import check
from elva_jax.config.keys import key_types, keys
from elva_jax.config.schema import Config

Group = TypeVar("Group")


def freeze(config: ConfigDict | Config) -> Config:
    """The typed form of a configuration, each of whose keys is checked.

    Raises:
      ConfigError: a key that is unknown, missing or wrong.
    """
    if isinstance(config, Config):
        return config
    check(Config, config)
    return typed(Config, config)


def typed(cls: type[Group], values: Mapping[str, Any] | ConfigDict) -> Group:
    """The typed form of one group, unchecked; keys that are missing have their defaults."""
    if isinstance(values, cls):
        return values
    out: dict[str, Any] = {}
    group: Any = cls  # mypy does not take a type variable for hashable
    kinds = key_types(group)
    for name, field in keys(group).items():
        if name not in values:
            continue
        value = values[name]
        if named := field.metadata.get("named"):
            value = {label: typed(named, inner) for label, inner in value.items()}
        elif dataclasses.is_dataclass(kinds[name]):
            value = typed(kinds[name], value)
        elif kinds[name] is float:
            value = float(value)
        elif kinds[name] == tuple[float, ...]:
            value = tuple(map(float, value))
        out[name] = value
    return cls(**out)


def config_to_dict(config: ConfigDict | Config) -> dict[str, Any]:
    """A configuration as JSON has it (tuples become lists)."""
    if isinstance(config, Config):
        config = schema.to_config_dict(config)
    return json.loads(config.to_json())


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """A saved configuration; keys that are newer than it have their defaults.

    Raises:
      ConfigError: a key that no longer exists, or a wrong value.
    """
    full = _with_defaults(Config, values)
    check(Config, full)
    return typed(Config, full)


def _with_defaults(cls: Any, values: Any) -> Any:
    """A group as JSON has it, with tuples for lists and the defaults of keys that are missing."""
    if not isinstance(values, Mapping):
        return values
    defaults = cls()
    out = {name: getattr(defaults, name) for name in keys(cls)}
    out |= {name: _tuples(value) for name, value in values.items()}
    for name, field in keys(cls).items():
        kind = key_types(cls)[name]
        if dataclasses.is_dataclass(kind):
            out[name] = _with_defaults(kind, values.get(name, {}))
        elif "named" in field.metadata and isinstance(out[name], Mapping):
            named = field.metadata["named"]
            out[name] = {label: _with_defaults(named, v) for label, v in out[name].items()}
    return out


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
