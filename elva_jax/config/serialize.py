"""A configuration as JSON has it, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from elva_jax.config import schema

Group = TypeVar("Group")


@functools.cache
def types(cls: type) -> dict[str, Any]:
    """The types of a group's fields."""
    return typing.get_type_hints(cls)


def typed(cls: type[Group], values: Mapping[str, Any]) -> Group:
    """A group of a valid configuration as its frozen dataclass; keys that are missing keep their
    defaults."""
    if isinstance(values, cls):
        return values
    out = {}
    for name, field in schema.keys(cls).items():
        if name not in values:
            continue
        value = values[name]
        if named := field.metadata.get("named"):
            value = {label: typed(named, inner) for label, inner in value.items()}
        elif dataclasses.is_dataclass(types(cls)[name]):
            value = typed(types(cls)[name], value)
        out[name] = float(value) if types(cls)[name] is float else value
    return cls(**out)


def config_to_dict(config: ConfigDict) -> dict[str, Any]:
    """A configuration as JSON has it (tuples become lists)."""
    return json.loads(config.to_json())


def config_from_dict(values: dict[str, Any]) -> ConfigDict:
    """The way back; lists become the tuples that the schema has, and keys that are newer than what was saved take their defaults."""
    config = ConfigDict(_tuples(values))
    _add_new_keys(config, schema.base())
    for stage in config.stages.values():
        _add_new_keys(stage, schema.stage())
        for source in stage.data.mixture.values():
            _add_new_keys(source, schema.source(""))
    return config


def _add_new_keys(config: ConfigDict, schema: ConfigDict) -> None:
    for key, default in schema.items():
        if key not in config:
            config[key] = default
        elif isinstance(default, ConfigDict) and key not in ("stages", "mixture"):
            _add_new_keys(config[key], default)


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value
