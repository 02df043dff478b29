"""Checksums of the files of weights in a folder.

checksums.json has a record for each file:

    {"model.safetensors": {"sha256": "6d1f…", "crc32": [2774…, …]}}

Loading compares the CRC-32 of each PIECE bytes: pieces are read in parallel, each takes a tenth of
the time of SHA-256. A record that is a string is the SHA-256 alone, as files in the hub's cache
have it as their name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from elva_jax.errors import ConvertError
from elva_jax.utils.files import crc32, sha256
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json

CHECKSUMS = "checksums.json"
PIECE = 2**26  # bytes; files that were written have their sums by it
AGAIN = "download or export it again"


def record(file: Path) -> dict[str, Any]:
    """The record of a file in checksums.json."""
    return {"sha256": sha256(file), "crc32": _pieces(file)}


def check_bytes(folder: Path, files: Sequence[Path]) -> None:
    """Compares files with checksums.json, or with their names in the hub's cache.

    Raises:
      ConvertError: a file that is not what its checksum says.
    """
    known = read_json(folder / CHECKSUMS, ConvertError) if (folder / CHECKSUMS).is_file() else {}
    for file in files:
        blob = file.resolve().name
        in_cache = file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob)
        expected = known.get(file.name) or (blob if in_cache else None)
        if isinstance(expected, dict):
            _compare_pieces(file, expected.get("crc32"))
        elif expected and (actual := sha256(file)) != expected:
            raise ConvertError(
                f"{file}: damaged, its sha256 is {actual[:12]}…, expected {shown(expected)[:12]}…;"
                f" {AGAIN}"
            )


def _compare_pieces(file: Path, expected: Any) -> None:
    if not isinstance(expected, list):
        raise ConvertError(f"{file.parent / CHECKSUMS}: lists no crc32 of {file.name}; {AGAIN}")
    actual = _pieces(file)
    if len(actual) != len(expected):
        raise ConvertError(
            f"{file}: has {len(actual)} pieces of 64 MiB, {CHECKSUMS} lists {len(expected)};"
            f" {AGAIN}"
        )
    for piece, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
        if found != wanted:
            raise ConvertError(
                f"{file}: damaged, bytes {piece * PIECE} to {(piece + 1) * PIECE} are not what was"
                f" written; {AGAIN}"
            )


def _pieces(file: Path) -> list[int]:
    """The CRC-32 of each piece of a file."""
    begins = range(0, file.stat().st_size, PIECE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda begin: crc32(file, begin, begin + PIECE), begins))
