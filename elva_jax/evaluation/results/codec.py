"""Frozen dataclasses as JSON values, and back by their annotations.

    number that is not finite   null (NaN), "Infinity" or "-Infinity"
    bytes                       the text "sha256:…", which is what comes back
    tuple                       array; a list where the annotation is Any

What a file holds is compared with the annotation, so that a damaged or foreign one is refused with
the place of the first value that does not belong there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """A value of JSON's types.

    Args:
      value: a dataclass, mapping, tuple, list, text, number, bytes or None, and any tree of these.
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy
        return encode(value.tolist())
    raise TypeError(f"{type(value).__name__} is not a value of a result")


def decode(kind: Any, value: Any, place: str) -> Any:
    """The value of a type from what `encode` made of it.

    Args:
      kind: a dataclass or any annotation of its fields.
      value: what a JSON file holds; instances of dataclasses in it stay as they are.
      place: where in the file, for messages.

    Raises:
      ValueError: the value is not of the type; names its place.
    """
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(of, value, place)
    if origin is Literal:
        if isinstance(value, str) and value in of:
            return value
        raise _wrong(place, "one of " + ", ".join(of), value)
    if origin is tuple:
        return _tuple(of, value, place)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(of[1], value, place)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _record(kind, value, place)
    return _scalar(kind, value, place)


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        try:
            return decode(kind, value, place)
        except ValueError:
            continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise _wrong(place, names, value)


def _tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(place, "an array", value)
    if kinds[-1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{place}: expected {len(kinds)} values, got {len(value)}")
    return tuple(
        decode(kind, item, f"{place}[{number}]")
        for number, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _mapping(kind: Any, value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    return {key: decode(kind, item, f"{place}.{key}") for key, item in value.items()}


def _record(kind: Any, value: Any, place: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    kinds = _kinds(kind)
    if unknown := sorted(value.keys() - kinds.keys()):
        raise ValueError(f"{place}: has the unknown key '{unknown[0][:60]}'")
    found = {}
    for f in dataclasses.fields(kind):
        if f.name in value:
            found[f.name] = decode(kinds[f.name], value[f.name], f"{place}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}: lacks the key '{f.name}'")
    return kind(**found)


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    """The annotation of each field."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is float:
        if value is None:
            return math.nan
        if isinstance(value, str) and value in INFINITIES:
            return INFINITIES[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise _wrong(place, "a number", value)
    if type(value) is not kind:
        raise _wrong(place, kind.__name__, value)
    return value


def _wrong(place: str, expected: str, value: Any) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
    return ValueError(f"{place}: expected {expected}, got {shown}")
