"""Keys as fields of frozen dataclasses, and the ConfigDict that is made from them."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from elva_jax.utils import numbers


def key(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: int = numbers.LARGEST_INT,
) -> Any:
    """A key: its default, its meaning, and its range (of each entry, where the key is a tuple).

    `minimum` and `maximum` belong to the range, `above` and `below` do not. `most` bounds a count
    that no machine or model of today reaches, so that nothing is allocated by a slip of the keys.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "limits": limits, "most": most}
    )


def named(cls: type, meaning: str) -> Any:
    """A mapping from names that the user chooses to groups of one class."""
    return dataclasses.field(default_factory=dict, metadata={"meaning": meaning, "named": cls})


@functools.cache
def keys(cls: Any) -> Mapping[str, dataclasses.Field]:
    """The fields of a group that users may set, by name."""
    fields = dataclasses.fields(cls)
    return MappingProxyType({f.name: f for f in fields if f.metadata.get("key", True)})


@functools.cache
def key_types(cls: Any) -> dict[str, Any]:
    """The types of a group's fields, by name."""
    return typing.get_type_hints(cls)


def to_config_dict(config: Any) -> ConfigDict:
    """The ConfigDict of a group, with the groups inside it."""
    out, cls = ConfigDict(), config.__class__
    for name, field in keys(cls).items():
        value = getattr(config, name)
        if "named" in field.metadata:
            value = ConfigDict({label: to_config_dict(inner) for label, inner in value.items()})
        out[name] = to_config_dict(value) if dataclasses.is_dataclass(value) else value
    return out
