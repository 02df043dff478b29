"""Every configuration key in words: for `elva config` and for the page docs/config.md."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from elva_jax.config import schema
from elva_jax.config.check import interval
from elva_jax.config.keys import key_types, keys
from elva_jax.config.load import load_unchecked, resolve

NAME = "NAME"  # stands for the names that users choose
HEADER = """\
# Configuration

<!-- Made by `elva config --markdown > docs/config.md`; do not edit. -->

A config file is Python with a function `get_config(arg)` that starts from
`elva_jax.config.schema.base()`, as the files in `configs/` do:
`elva train --config FILE.py:ARG --config.KEY=VALUE`. `elva config --config FILE.py` prints every
key of a file with its value and where the value comes from. `NAME` is a name of your own.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One key of the schema."""

    path: str
    kind: str  # type, allowed values and range
    default: Any
    meaning: str


def walk(
    cls: Any = schema.Config, prefix: str = "", values: ConfigDict | None = None
) -> Iterator[tuple[str, Any]]:
    """Every group with the prefix of its keys, each before the groups inside it.

    Groups that users name are those of `values`; without it, one of them stands for all.
    """
    yield prefix, cls
    for name, field in keys(cls).items():
        kind, inner = key_types(cls)[name], None if values is None else values[name]
        if dataclasses.is_dataclass(kind):
            yield from walk(kind, f"{prefix}{name}.", inner)
        elif named := field.metadata.get("named"):
            for label in [NAME] if inner is None else inner:
                group = None if inner is None else inner[label]
                yield from walk(named, f"{prefix}{name}.{label}.", group)


def keys_of(cls: Any, prefix: str) -> list[Key]:
    """The keys of one group, without those of the groups inside it."""
    return [
        Key(
            path=prefix + name,
            kind=describe_type(key_types(cls)[name], field.metadata["limits"]),
            default=field.default,
            meaning=field.metadata["meaning"],
        )
        for name, field in keys(cls).items()
        if "limits" in field.metadata
    ]


def describe_type(kind: Any, limits: Mapping[str, float]) -> str:
    """Type, allowed values and range of a key."""
    if typing.get_origin(kind) is tuple:
        return f"tuple of {describe_type(typing.get_args(kind)[0], limits)}"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if {"minimum", "above"} & limits.keys() and {"maximum", "below"} & limits.keys():
        return f"{kind.__name__} in {interval(limits)}"
    signs = {"minimum": "≥", "above": ">", "maximum": "≤", "below": "<"}
    return " ".join([kind.__name__, *(f"{signs[name]} {limits[name]}" for name in limits)])


def markdown() -> str:
    """The page docs/config.md."""
    out = [HEADER]
    for prefix, cls in walk():
        title = prefix.removesuffix(".") or "Shared by all stages"
        out.append(f"## {title}\n\n{_plain(cls.__doc__)}\n")
        out.append("| key | type | default | meaning |\n|---|---|---|---|")
        for key in keys_of(cls, prefix):
            name = key.path.removeprefix(prefix)
            meaning = key.meaning.replace("<", "&lt;").replace("|", "\\|")
            out.append(f"| `{name}` | {key.kind} | `{key.default!r}` | {meaning} |")
        out.append("")
    return "\n".join(out).replace(" < ", " &lt; ")


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def text(spec: str | None = None, overrides: Sequence[str] = ()) -> str:
    """Every key with its type, meaning and default; of a config file also value and origin.

    Raises:
      ConfigError: a config that cannot be read or cannot work.
    """
    if spec is None:
        found = [key for prefix, cls in walk() for key in keys_of(cls, prefix)]
        return "\n".join(f"{key.path} = {key.default!r}" + _details(key) for key in found)
    config, plain = load_unchecked(spec, overrides), load_unchecked(spec)
    resolve(config)
    given = {match[1] for word in overrides if (match := re.match(r"--?config\.([\w.]+)", word))}
    out = []
    for key in (key for prefix, cls in walk(values=config) for key in keys_of(cls, prefix)):
        origin = "default" if _value(plain, key.path) == key.default else "config file"
        origin = "command line" if key.path in given else origin
        out.append(f"{key.path} = {_value(config, key.path)!r}  [{origin}]" + _details(key))
    return "\n".join(out)


def _details(key: Key) -> str:
    words = f"{key.kind}, default {key.default!r}: {key.meaning}"
    return "\n" + textwrap.fill(words, 96, initial_indent="    ", subsequent_indent="    ")


def _value(config: ConfigDict, path: str) -> Any:
    for part in path.split("."):
        config = config[part]
    return config
