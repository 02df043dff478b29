"""A journal of answers: a file of JSON lines that only grows, and survives a kill at any moment.

    {"journal": 1, "benchmark": "videomme", "settings": {…}}      the head
    {"key": "12-1", "hash": "…", "text": "B", …}                   one line per question

A batch of answers is written and synced before the next one is asked. A last line without its end
is what a killed process left; it is cut off, and its question is asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva_jax.errors import DataError
from elva_jax.utils.failures import repr_path
from elva_jax.utils.files import naming
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import open_regular, parse_json, read_lines

VERSION = 1
LONGEST_LINE = 2**24


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first line of a journal, which says what its answers belong to.

    Attributes:
      fields: the first line beside the version; those in "settings" decide the answers.
      of: what the answers are of, in messages.
      way_out: for messages about a journal of something else.
    """

    fields: Mapping[str, Any]
    of: str
    way_out: str

    @property
    def line(self) -> dict[str, Any]:
        """The first line."""
        return {"journal": VERSION, **self.fields}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One whole line of a journal after the head."""

    path: Path
    number: int
    start: int  # its first byte
    record: Mapping[str, Any]

    def damaged(self, reason: str) -> DataError:
        """The error about this line."""
        return _damaged(self.path, self.number, reason)


class Journal:
    """One process's open journal.

    Args:
      path: the file; it is continued, or made.
      head: what it is of.

    Raises:
      DataError: the file is of something else, or damaged.
      OSError: it cannot be written.
    """

    def __init__(self, path: Path, head: Head) -> None:
        # Without a buffer, which a full disk would keep and fail to write again at the end.
        self._path, self._file = path, path.open("ab", buffering=0)
        try:
            size = _whole_lines(path)
            self._file.truncate(size)
            if not size:
                self.append([head.line])
            check_head(path, head)
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes records so that they outlive this process and its machine."""
        lines = [json.dumps(record, ensure_ascii=True, allow_nan=False) for record in records]
        rest = memoryview("".join(f"{line}\n" for line in lines).encode())
        with naming(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def check_head(path: Path, head: Head) -> int:
    """Checks that a journal was made by the same model with the same settings.

    Returns:
      The length of the first line in bytes; 0 where it is not whole.

    Raises:
      DataError: it was not; names the first difference.
    """
    line = next(iter(read_lines(path, DataError, LONGEST_LINE)), b"")
    if not line.endswith(b"\n"):
        return 0  # its process was killed before it had asked anything
    found = _parse(path, 1, line)
    if found.get("journal") != VERSION:
        raise DataError(
            f"{repr_path(path)}: is no journal of version {VERSION} of an {head.of}; {head.way_out}"
        )
    expected = json.loads(json.dumps(head.line))
    theirs, ours = _flat(found), _flat(expected)
    for name in (*ours, *theirs):
        if theirs.get(name) != ours.get(name):
            raise DataError(
                f"{repr_path(path)}: holds answers of another {head.of} ({name}:"
                f" {shown(theirs.get(name))}, now {shown(ours.get(name))}); {head.way_out}"
            )
    return len(line)


def lines_from(path: Path, start: int, number: int) -> Iterator[tuple[Line, int]]:
    """The whole lines from a byte on.

    Args:
      path: the journal.
      start: the first byte of a line.
      number: the number of that line.

    Yields:
      A line, and where the next one begins.

    Raises:
      DataError: the file is damaged.
    """
    with open_regular(path) as file:
        file.seek(start)
        while (line := file.readline(LONGEST_LINE + 1)).endswith(b"\n"):
            record = _parse(path, number, line)
            yield Line(path=path, number=number, start=start, record=record), start + len(line)
            start, number = start + len(line), number + 1
    if len(line) > LONGEST_LINE:
        raise _damaged(path, number, f"more than {LONGEST_LINE >> 20} MiB")


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    return sum(
        len(line) for line in read_lines(path, DataError, LONGEST_LINE) if line[-1:] == b"\n"
    )


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as problem:
        raise _damaged(path, number, str(problem)) from None
    if not isinstance(record, dict):
        raise _damaged(path, number, "not an object")
    return record


def _damaged(path: Path, number: int, reason: str) -> DataError:
    return DataError(
        f"{repr_path(path)}: line {number} is damaged ({reason}); remove the line, and its question"
        " is asked again"
    )


def _flat(head: Mapping[str, Any]) -> dict[str, Any]:
    """The head's values by name, with the settings beside the others."""
    settings = head.get("settings")
    rest = {name: value for name, value in head.items() if name != "settings"}
    return rest | (settings if isinstance(settings, dict) else {})
