"""JSON files with an array of records or one record per line; random access by byte offsets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from elva_jax.data.example import Example
from elva_jax.data.readers import chat, paths, records
from elva_jax.errors import DataError
from elva_jax.utils.read import LARGEST_ARRAY, open_regular, parse_json, read_bytes, read_lines

BOM = b"\xef\xbb\xbf"
FIRST = 20  # at least one of the first lines must be a record
SPACE = re.compile(r"[ \t\n\r]*")


class JsonFile(Sequence[Example]):
    """The conversations of a LLaVA or ShareGPT file; see `chat.to_example` for a record's fields.

    It can be pickled and shared, because every access opens the file again.

    Args:
      path: a JSON array, recognized by its first character, or lines of JSON. Empty lines are
        skipped.
      root: the folder that media paths are relative to; "": that of the file.

    Raises:
      DataError: the file or folder does not exist, or the file has another format; the message
        names the line.
    """

    def __init__(self, path: str | Path, root: str = ""):
        self.path = Path(path)
        self.files = [self.path]
        self.root = paths.root_folder(root, self.path)
        with open_regular(self.path) as file:
            head = file.read(4096).removeprefix(BOM).lstrip()
        if b"\0" in head[:4]:
            raise DataError(f"{self.path}: is not UTF-8 text, perhaps UTF-16; save it as UTF-8")
        if head[:1] not in (b"[", b"{"):
            raise DataError(
                f"{self.path}: neither a JSON array of records nor one JSON record per line"
            )
        self.lines = head[:1] == b"{"
        spans = _lines(self.path) if self.lines else _elements(self.path)
        # (first byte, end, number) of every line or element.
        self.spans_Nx3 = np.fromiter(spans, np.dtype((np.int64, 3)))
        if self.lines and not any(self._is_json(k) for k in islice(range(len(self)), FIRST)):
            raise DataError(
                f"{self.path}: none of the first {FIRST} lines is a JSON record; "
                "put a single record into a JSON array"
            )

    def __len__(self) -> int:
        return len(self.spans_Nx3)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Reads a record.

        Raises:
          RecordError: the record is malformed; the message names its line or its array index.
        """
        key, value = self.record(index)
        return chat.to_example(value, key, lambda name: paths.inside(self.root, name, key))

    def record(self, index: int) -> tuple[str, Any]:
        """The name of a record in messages, which is its line or array index, and its JSON value.

        Raises:
          RecordError: it is not JSON.
        """
        key = self.place(index)
        return key, records.decode_json(self.text(index), key)

    def place(self, index: int) -> str:
        """The name of a record in messages."""
        number = self.spans_Nx3[index, 2]
        return f"{self.path.name}:{number}" if self.lines else f"{self.path.name}[{number}]"

    def text(self, index: int) -> bytes:
        """The text of a record."""
        return records.read_span(self.path, *self.spans_Nx3[index, :2].tolist())

    def _is_json(self, index: int) -> bool:
        try:
            parse_json(self.text(index).decode("latin-1"), unique=False, finite=False)
        except ValueError:
            return False
        return True


def _lines(path: Path) -> Iterator[tuple[int, int, int]]:
    """(first byte, end, line number from 1) of every line that is not empty."""
    position = 0
    for number, line in enumerate(read_lines(path), start=1):
        skipped = len(BOM) if number == 1 and line.startswith(BOM) else 0
        if line.strip():
            yield position + skipped, position + len(line), number
        position += len(line)


def _after_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


def _elements(path: Path) -> Iterator[tuple[int, int, int]]:
    """(first byte, end, index) of every element of an array.

    The file is decoded as Latin-1, one character per byte, so that character offsets are byte
    offsets. JSON's syntax is ASCII, and UTF-8 uses ASCII bytes for nothing else.
    """
    text = read_bytes(path, limit=LARGEST_ARRAY).decode("latin-1")
    scan = json.JSONDecoder().raw_decode
    position = text.index("[") + 1
    number = 0
    try:
        while True:
            position = _after_space(text, position)
            if text[position : position + 1] == "]" and number == 0:
                break
            _, end = scan(text, position)
            yield position, end, number
            number += 1
            position = _after_space(text, end)
            if text[position : position + 1] != ",":
                break
            position += 1
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}: broken JSON in record {number} ({error.msg})"
        ) from None
    except (ValueError, RecursionError) as error:
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{path}: line {line}: broken JSON in record {number} ({type(error).__name__})"
        ) from None
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{path}: line {line}: broken JSON after record {number - 1} "
            "(a comma or the array's end was expected)"
        )
