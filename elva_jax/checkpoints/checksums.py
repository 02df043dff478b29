"""Checksums of a saved step: Orbax hands flipped bytes of an array on without a word."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from elva_jax.utils.files import write_atomic

NAME = "checksums.json"  # {path below the step: [bytes, CRC-32]}
THREADS = 8  # files read at once
PIECE = 2**22  # bytes read at once of a file


def write(step: Path) -> None:
    """Notes size and checksum of every file of a step's items, in `NAME` beside them."""
    files = sorted(
        path
        for item in step.iterdir()
        if item.is_dir()
        for path in item.rglob("*")
        if path.is_file()
    )
    with ThreadPoolExecutor(THREADS) as pool:
        sums = dict(
            zip(
                (path.relative_to(step).as_posix() for path in files),
                pool.map(_sum, files),
                strict=True,
            )
        )
    write_atomic(step / NAME, json.dumps(sums) + "\n")


def damage(step: Path, items: tuple[str, ...], index: int = 0, count: int = 1) -> str | None:
    """What is wrong with a saved step, in a few words, or None.

    Args:
      step: its directory.
      items: names of the items that it must have, and that are read.
      index, count: this process's share of the files, so that several read each of them once.
    """
    for item in items:
        if not (step / item).is_dir():
            return f"{item} is missing"
    if not (step / NAME).is_file():
        return None  # saved before there were checksums
    try:
        sums: Mapping[str, list[int]] = json.loads((step / NAME).read_text())
        names = [name for name in sorted(sums) if name.partition("/")[0] in items][index::count]
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda name: _compare(step / name, *sums[name]), names)
            return next(
                (
                    f"{name} {problem}"
                    for name, problem in zip(names, found, strict=True)
                    if problem
                ),
                None,
            )
    except (ValueError, TypeError, AttributeError):
        return f"{NAME} is not readable"


def _sum(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum


def _compare(path: Path, size: int, checksum: int) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes of {size}"
        return None if _sum(path)[1] == checksum else "is not what was saved"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
