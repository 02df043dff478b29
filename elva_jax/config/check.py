"""Compares every key of a configuration with the schema: name, type, allowed values and range."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from elva_jax.config.keys import key_types, keys
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers


def nearest(wrong: object, allowed: Iterable[object]) -> str:
    """The end of a message about a wrong name: the most similar allowed one, if there is any."""
    near = difflib.get_close_matches(str(wrong)[:100], list(map(str, allowed)), 1, 0)
    return f"; did you mean {near[0]}?" if near else ""


def require(condition: object, key: str, problem: str) -> None:
    """Raises ConfigError with the key and the problem unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: {problem}")


def check(cls: Any, values: Any, prefix: str = "") -> None:
    """Compares a group with its class in the schema.

    Args:
      cls: the class, such as `schema.Config`.
      values: the group as a ConfigDict or a plain mapping.
      prefix: what the names of its keys begin with, such as `stages.video.`.

    Raises:
      ConfigError: the first key that is unknown, missing or wrong, and the nearest right one.
    """
    if not hasattr(values, "items"):
        raise _no_group(prefix.removesuffix(".") or "config", values)
    known = keys(cls)
    for name in values:
        if name not in known:
            raise ConfigError(f"{prefix}{numbers.shown(name)}: no such key{nearest(name, known)}")
    for name, field in known.items():
        key, kind = prefix + name, key_types(cls)[name]
        require(name in values, key, "missing; start the config from elva_jax.config.schema")
        if dataclasses.is_dataclass(kind):
            check(kind, values[name], f"{key}.")
        elif "named" in field.metadata:
            check_names(values[name], key)
            for label, inner in values[name].items():
                check(field.metadata["named"], inner, f"{key}.{label}.")
        else:
            check_key(cls, name, values[name], key)


def check_key(cls: Any, name: str, value: Any, key: str) -> None:
    """Compares one value of a group with the class's field `name`; errors call it `key`."""
    kind, metadata = key_types(cls)[name], keys(cls)[name].metadata
    if typing.get_origin(kind) is not tuple:
        check_value(key, value, kind, metadata)
        return
    if type(value) is not tuple:
        raise _wrong_type(key, tuple, value)
    for entry in value:
        check_value(key, entry, typing.get_args(kind)[0], metadata)


def check_names(values: Any, key: str) -> None:
    """Refuses what is not a mapping from names to groups."""
    if not hasattr(values, "items"):
        raise _no_group(key, values)
    for label in values:
        require(isinstance(label, str), key, f"expected names, got {numbers.shown(label)}")


# Built only where they are raised: the text of a large group takes as long as checking it.
def _no_group(key: str, value: object) -> ConfigError:
    return ConfigError(f"{key}: expected a group of settings, got {numbers.shown(value)}")


def _wrong_type(key: str, expected: type, value: object) -> ConfigError:
    text = repr(value) if isinstance(value, str) else numbers.shown(value)
    got = f"{type(value).__name__} {numbers.shown(text)}"
    return ConfigError(f"{key}: expected {expected.__name__}, got {got}")


def check_value(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> None:
    """Compares one value, or one entry of a tuple, with its type, allowed values and range.

    Raises:
      ConfigError: naming the key.
    """
    if typing.get_origin(kind) is typing.Literal:
        allowed = typing.get_args(kind)
        if type(value) is not type(allowed[0]):
            raise _wrong_type(key, type(allowed[0]), value)
        if value in allowed:
            return
        if not isinstance(value, str):
            raise ConfigError(f"{key}: must be {' or '.join(map(str, allowed))}, got {value}")
        near = nearest(value, allowed)
        raise ConfigError(
            f"{key}: '{numbers.shown(value)}' is not one of {', '.join(allowed)}{near}"
        )
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _wrong_type(key, kind, value)
    if kind is str:
        require("\0" not in value, key, "holds a NUL character")
    if kind in (int, float):
        _check_number(key, value, kind, metadata)


def _check_number(key: str, value: float, kind: type, metadata: Mapping[str, Any]) -> None:
    finite = type(value) is int or math.isfinite(value)
    if finite:
        _check_range(key, value, metadata)
    most = metadata["most"] if kind is int else numbers.LARGEST_FLOAT
    if not finite or abs(value) > most:
        sort = "number" if finite else "finite number"
        limits = describe_range(metadata["limits"], kind, metadata["most"])
        raise ConfigError(f"{key}: must be a {sort}{limits}, got {numbers.shown(value)}")


def interval(limits: Mapping[str, float]) -> str:
    """A range with two ends, such as (0, 1]."""
    low = f"[{limits['minimum']}" if "minimum" in limits else f"({limits['above']}"
    return f"{low}, " + (f"{limits['maximum']}]" if "maximum" in limits else f"{limits['below']})")


def describe_range(limits: Mapping[str, float], kind: type, most: int) -> str:
    """Both ends of a range for a message, such as ` in [1, 4096]`."""
    largest = most if kind is int else float(f"{numbers.LARGEST_FLOAT:.3g}")
    if not {"minimum", "above"} & limits.keys():
        limits = {"minimum": -largest, **limits}
    if not {"maximum", "below"} & limits.keys():
        limits = {"maximum": largest, **limits}
    return f" in {interval(limits)}"


def _check_range(key: str, value: float, metadata: Mapping[str, Any]) -> None:
    limits = metadata["limits"]
    low, high = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
    above, below = limits.get("above", -math.inf), limits.get("below", math.inf)
    if low <= value <= high and above < value < below:
        return
    if "maximum" in limits or "below" in limits:
        near = min(max(value, low), high)
        hint = f"; did you mean {type(value)(near)}?" if above < near < below else ""
        raise ConfigError(f"{key}: must be in {interval(limits)}, got {numbers.shown(value)}{hint}")
    if above == 0:
        raise ConfigError(f"{key}: must be positive, got {numbers.shown(value)}")
    if low != 0:
        raise ConfigError(f"{key}: must be at least {low}, got {numbers.shown(value)}")
    zero = re.search(r"(?:^|; )0: ([^;]+)", metadata["meaning"])
    raise ConfigError(
        f"{key}: cannot be negative, got {numbers.shown(value)}"
        + (f"; 0: {zero[1]}" if zero else "")
    )
