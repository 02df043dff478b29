"""Which records of a source are used, and mixtures in the form of YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from elva_jax.config import schema
from elva_jax.errors import ConfigError
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_text

KINDS = ("all", "first", "end", "random")
FORMS = (
    "all, first:N, end:N, random:N, where N is a number of records or a share of them such as 10%"
)
# Keys of the YAML that have other names here.
KEYS = {"json_path": "name", "sampling_strategy": "sampling"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampling strategy: all records, or some at the start, at the end, or drawn at random."""

    kind: str
    number: int = 0  # records; 0: a share of them, or all
    percent: Fraction = Fraction(100)

    def count(self, total: int) -> int:
        """How many of `total` records are used; shares are rounded up."""
        return self.number or math.ceil(total * self.percent / 100)


def parse_sampling(text: str) -> Sampling:
    """Reads `all`, `first:N`, `end:N` or `random:N`, where N may be a share such as 10%.

    Raises:
      ValueError: anything else, with the nearest right form.
    """
    if len(text) > 60 or not text.isascii():
        raise ValueError(f"'{shown(text)}' is none of {FORMS}")
    match = re.fullmatch(r"(first|end|random):(?:(\d+)|(\d+(?:\.\d+)?)%)", text)
    if match:
        kind, number, percent = match.groups()
        if number and int(number):
            return Sampling(kind=kind, number=int(number))
        if percent and 0 < Fraction(percent) <= 100:
            return Sampling(kind=kind, percent=Fraction(percent))
    if text == "all":
        return Sampling(kind="all")
    raise ValueError(f"'{text}' is none of {FORMS}; did you mean {_nearest(text)}?")


def _nearest(text: str) -> str:
    """The right strategy that is most similar to a wrong one."""
    word = text.strip().lower()
    word = word[: len(word) - len(word.lstrip("abcdefghijklmnopqrstuvwxyz"))]
    kind = difflib.get_close_matches(word, KINDS, 1, 0)[0] if word else "all"
    found = re.search(r"(?:(\d+(?:\.\d+)?)\s*)?(%)?", re.sub(r"^[^\d%]*", "", text))
    number, share = found.groups() if found else (None, None)
    if share and Fraction(number or 10) > 100:
        return "all"
    amount = f"{number or 10}%" if share else str(int(float(number or 0)) or 1000)
    return "all" if kind == "all" else f"{kind}:{amount if float(amount.rstrip('%')) else '10%'}"


class _UniqueKeys(yaml.SafeLoader):
    """A key that occurs twice is refused; PyYAML takes the last value."""

    def construct_mapping(
        self,
        node: Any,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name.value, str)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"the key '{twice[0]}' occurs twice in line {node.start_mark.line + 1}"
            )
        return super().construct_mapping(node, deep)


def from_yaml(path: str | Path, root: str = "") -> ConfigDict:
    """A stage's mixture from the YAML of LLaVA's successors.

    It is a list `datasets` of `{json_path, sampling_strategy}`. An entry may also set any key of
    `schema.SourceConfig` (weight, epochs, root …) and a `label`, by default the file's name.

    Args:
      path: the YAML file.
      root: the folder of all media, where an entry has no `root` of its own.

    Raises:
      ConfigError: not such a file, or an entry that cannot be read, by its number.
    """
    try:
        loaded = yaml.load(read_text(path, ConfigError), _UniqueKeys)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())[:160]})") from None
    entries = loaded.get("datasets") if isinstance(loaded, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{path}: has no list 'datasets' of entries such as"
            " {json_path: notes.json, sampling_strategy: all}"
        )
    mixture = ConfigDict()
    for number, entry in enumerate(entries, 1):
        label, source = _source(entry, f"{path}: datasets[{number}]")
        source.root = source.root or root
        while label in mixture:
            label += f"_{number}"
        mixture[label] = source
    return mixture


def _source(entry: Any, where: str) -> tuple[str, ConfigDict]:
    """One entry of the YAML and its label."""
    if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
        raise ConfigError(f"{where}: has no json_path")
    source = schema.source("")
    allowed = ("label", *KEYS, *(key for key in source if key not in KEYS.values()))
    for key, value in entry.items():
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1, 0)[0]
            raise ConfigError(f"{where}: no such key '{key}'; did you mean {near}?")
        if key == "label":
            continue
        try:
            source[KEYS.get(key, key)] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise ConfigError(f"{where}: {key}: {error}") from None
    label = str(entry.get("label") or Path(source.name).stem)
    return re.sub(r"\W", "_", label), source
