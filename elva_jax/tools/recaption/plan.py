"""Chooses the items of a manifest for this process: its shard, each content once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from elva_jax.tools.recaption.manifest import Item
from elva_jax.utils.files import sha256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The items of one shard, in the order of the manifest.

    Attributes:
      items: each content once.
      duplicates: items with the same bytes as an earlier one, with the id of that one.
    """

    items: list[Item]
    duplicates: list[tuple[Item, str]]


def plan_shard(items: Iterable[Item], shard: int = 0, shards: int = 1) -> Plan:
    """Takes the items of shard `shard` (from 0) of `shards`, without repeated contents.

    The size of a file in bytes chooses its shard. Equal files are therefore in the same shard, so
    that every process finds its duplicates alone, and hashes only files whose size occurs twice.
    """
    by_size: dict[int, list[tuple[Item, Path]]] = defaultdict(list)
    mine: list[Item] = []
    for item in items:
        size = _size(item.path)
        key = item.id if size is None else str(size)
        if _hash(key) % shards == shard:
            mine.append(item)
            if size is not None and item.path is not None:
                by_size[size].append((item, item.path))
    original: dict[str, str] = {}  # id of a duplicate -> id of the first item with its content
    for group in by_size.values():
        if len(group) > 1:
            original |= _duplicates(group)
    return Plan(
        items=[item for item in mine if item.id not in original],
        duplicates=[(item, original[item.id]) for item in mine if item.id in original],
    )


def _duplicates(items: list[tuple[Item, Path]]) -> dict[str, str]:
    firsts: dict[tuple[str, ...], str] = {}
    found = {}
    for item, path in items:
        try:
            content = tuple(sha256(file) for file in _files(path))
        except OSError:  # reported when the item is read for the model
            continue
        first = firsts.setdefault(content, item.id)
        if first != item.id:
            found[item.id] = first
    return found


def _size(path: Path | None) -> int | None:
    """The size in bytes; None if nothing there can be read."""
    try:
        return None if path is None else sum(file.stat().st_size for file in _files(path))
    except OSError:
        return None


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder of frames in the order of their names."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
