"""Checksums of a saved step, because Orbax returns arrays with flipped bits without an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from elva_jax.errors import CheckpointError
from elva_jax.utils.files import crc32, write_atomic
from elva_jax.utils.read import read_json

FILE_NAME = "checksums.json"  # {path relative to the step: [bytes, CRC-32]}
THREADS = 8  # files read at the same time


def write_checksums(step: Path) -> None:
    """Records size and checksum of every file of a step's items."""
    files = sorted(path for path in step.glob("*/**/*") if path.is_file())
    with ThreadPoolExecutor(THREADS) as pool:
        names = (path.relative_to(step).as_posix() for path in files)
        sums = dict(zip(names, pool.map(_size_and_crc, files), strict=True))
    write_atomic(step / FILE_NAME, json.dumps(sums) + "\n")


def find_damage(step: Path, items: tuple[str, ...]) -> str | None:
    """Says in a few words what is wrong with items of a saved step, or None.

    Several processes divide the files among them, so each reads only its share.
    """
    for item in items:
        if not (step / item).is_dir():
            return f"{item} is missing"
    if not (step / FILE_NAME).exists():
        return None  # saved by a version without checksums
    try:
        sums: Mapping[str, list[int]] = read_json(step / FILE_NAME, CheckpointError)
        names = [name for name in sorted(sums) if name.partition("/")[0] in items]
        names = names[jax.process_index() :: jax.process_count()]
        with ThreadPoolExecutor(THREADS) as pool:
            problems = pool.map(lambda name: _compare(step / name, *sums[name]), names)
            found = zip(names, problems, strict=True)
            return next((f"{name} {problem}" for name, problem in found if problem), None)
    except (CheckpointError, ValueError, TypeError, AttributeError):
        return f"{FILE_NAME} is not readable"


def _size_and_crc(path: Path) -> tuple[int, int]:
    return path.stat().st_size, crc32(path)


def _compare(path: Path, size: int, checksum: int) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes of {size}"
        return None if crc32(path) == checksum else "is not what was saved"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
