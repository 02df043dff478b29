"""Which items of a manifest this process describes: its shard, without what is there twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from elva_jax.tools.recaption.manifest import Item


class Plan(NamedTuple):
    """The items of one shard, in the order of the manifest."""

    items: list[Item]  # each content once
    duplicates: list[
        tuple[Item, str]
    ]  # an item whose bytes are those of an earlier one, and that one's id


def plan(items: Iterable[Item], shard: int = 0, shards: int = 1) -> Plan:
    """Takes the items of shard `shard` (from 0) of `shards`, and leaves out repeated contents.

    A shard is chosen by a medium's size in bytes: files of the same content are then in the same shard, so that every process finds its
    own duplicates, and reads only those files whose size is there more than once.
    """
    groups: dict[int, list[int]] = {}
    mine: list[Item] = []
    for item in items:
        size = _size(item.path)
        if _hash(str(size) if size is not None else item.id) % shards != shard:
            continue
        if size is not None:
            groups.setdefault(size, []).append(len(mine))
        mine.append(item)
    first_of: dict[int, str] = {}
    for indices in groups.values():
        if len(indices) > 1:
            first_of |= _repeated(mine, indices)
    kept = [item for index, item in enumerate(mine) if index not in first_of]
    return Plan(kept, [(mine[index], first_of[index]) for index in sorted(first_of)])


def _repeated(items: list[Item], indices: list[int]) -> dict[int, str]:
    firsts: dict[bytes, str] = {}
    found = {}
    for index in indices:
        try:
            digest = content_hash(items[index].path)
        except OSError:  # reading it for the model will say why
            continue
        first = firsts.setdefault(digest, items[index].id)
        if first != items[index].id:
            found[index] = first
    return found


def content_hash(path: Path) -> bytes:
    """SHA-256 of a file, or of the files of a folder of frames in order of their names."""
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.digest()


def _size(path: Path | None) -> int | None:
    """Bytes; None where there is nothing that can be read."""
    if path is None:
        return None
    try:
        return sum(file.stat().st_size for file in _files(path))
    except OSError:
        return None


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
