"""Annotation files of benchmarks as records, and the media below a benchmark's root."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from elva_jax.data.example import Media
from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.base import Question
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import MOST_SECONDS, shown
from elva_jax.utils.read import open_regular, opening, parse_json, read_json, read_lines, read_text
from elva_jax.video.read import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".gif")
SUFFIXES = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES}
MEDIA_SUFFIXES = frozenset((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
LONGEST_PATH, LONGEST_NAME = 2048, 240  # bytes of a path and of a part of it; suffixes come after
LARGEST_FIELD = 2**25  # characters of a CSV field, such as subtitles or an image in base64


@dataclass(frozen=True)
class Record:
    """One row of an annotation file.

    Attributes:
      key: its place for messages: `videomme.json[3]`.
      fields: its values by name.
    """

    key: str
    fields: Mapping[str, Any]

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of the first of several names that is there and not null."""
        for name in names:
            if (value := self.fields.get(name)) is not None:
                return value
        return default

    def require(self, *names: str) -> Any:
        """The value of the first of several names that is there.

        Raises:
          RecordError: none is.
        """
        if (value := self.get(*names)) is None:
            listed = " or ".join(f"'{name}'" for name in names)
            known = ", ".join(list(map(str, self.fields))[:20])[:200]
            raise RecordError(self.key, f"has no field {listed}; it has {known}")
        return value

    def text(self, *names: str) -> str:
        """The text of the first of several names that is there; numbers are written out.

        Raises:
          RecordError: there is none, it is empty, or it is neither a text nor a number.
        """
        value = self.require(*names)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise RecordError(self.key, f"'{names[0]}' is {shown(value)}, no text")
        if not _is_unicode(value):
            raise RecordError(self.key, f"'{names[0]}' is not valid Unicode text")
        return value.strip()

    def seconds(self, name: str) -> float | None:
        """A time in seconds; None if it is not there.

        Raises:
          RecordError: it is no time within a video.
        """
        value = self.get(name)
        if value is None or value == "":
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number <= MOST_SECONDS:  # NaN is in no range
            raise RecordError(self.key, f"'{name}' is {shown(value)}, no time in seconds")
        return number

    def texts(self, *names: str) -> tuple[str, ...]:
        """The texts of a list, as in `text`.

        Raises:
          RecordError: there is none, or it is no list of texts.
        """
        values = self.require(*names)
        if not isinstance(values, (list, tuple)):
            raise RecordError(self.key, f"'{names[0]}' is {shown(values)}, no list")
        return tuple(Record(self.key, {names[0]: value}).text(names[0]) for value in values)


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which JSON allows and UTF-8 does not."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_records(files: Iterable[Path]) -> list[Record]:
    """The rows of files in JSON (an array), JSONL (also named .json), CSV, TSV or Parquet.

    Raises:
      DataError: a file is damaged, of another format, or needs a package that is not there.
      RecordError: a row is no object.
    """
    return [record for file in files for record in _read(file)]


def _read(file: Path) -> list[Record]:
    name, suffix = file.name, file.suffix.lower()
    if suffix == ".parquet":
        rows: Iterable[Any] = _parquet(file)
    elif suffix in (".csv", ".tsv"):
        rows = _csv(file)
    elif suffix == ".jsonl" or _has_lines(file):
        rows = _lines(file)
    else:
        rows = read_json(file, DataError, list)
    return as_records(rows, name)


def as_records(rows: Iterable[Any], name: str) -> list[Record]:
    """The rows of a file as records, whose keys have its name.

    Raises:
      RecordError: a row is no object.
    """
    records = []
    for number, row in enumerate(rows):
        key = f"{name}[{number}]"
        if not isinstance(row, dict):
            raise RecordError(key, f"is {shown(row)}, no object with fields")
        records.append(Record(key, row))
    return records


def _has_lines(file: Path) -> bool:
    """Whether a file holds an object on each of its first two lines; some such are named .json."""
    lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in read_lines(file))
    first = list(islice(filter(None, lines), 2))
    return len(first) == 2 and all(line[:1] + line[-1:] == b"{}" for line in first)


def _lines(file: Path) -> Iterable[Any]:
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError as problem:
                raise RecordError(f"{file.name}:{number}", f"is not JSON ({problem})") from None


def _csv(file: Path) -> list[dict[str, str]]:
    text = io.StringIO(read_text(file), newline="")
    header = text.readline()
    text.seek(0)
    # Some tables with tabs are named .csv.
    delimiter = "\t" if file.suffix.lower() == ".tsv" or "," not in header else ","
    limit = csv.field_size_limit(LARGEST_FIELD)
    reader = csv.DictReader(text, delimiter=delimiter)
    try:
        rows = list(reader)
    except csv.Error as problem:
        where = f"{repr_path(file)}: line {reader.line_num}"
        raise DataError(f"{where}: is not CSV ({problem}); copy it again") from None
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            columns = len(reader.fieldnames or ())
            key = f"{file.name}[{number}]"
            raise RecordError(key, f"does not have the header's {columns} columns")
    return rows


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        # Imported late: pyarrow is an extra, which no other format needs.
        from elva_jax.data.readers.huggingface import ParquetFile  # noqa: PLC0415
    except ModuleNotFoundError as problem:
        needs = f"needs {problem.name}"
        raise DataError(f'{repr_path(file)}: {needs}; pip install "elva_jax[data]"') from None
    open_regular(file).close()
    with opening(file, DataError):
        table = ParquetFile(file)
        return [row for part in range(len(table.counts)) for row in table.rows(part).to_pylist()]


def as_integer(value: object, key: str, name: str) -> int:
    """A whole number that a file may hold as a text.

    Raises:
      RecordError: it is none.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not text.lstrip("-").isdecimal() or len(text) > 18:
        raise RecordError(key, f"'{name}' is {shown(value)}, no whole number")
    return int(text)


def unique(questions: Iterable[Question], where: str) -> tuple[Question, ...]:
    """The questions, if each has a key of its own.

    Raises:
      DataError: two share a key, or there are none.
    """
    by_key: dict[str, Question] = {}
    for question in questions:
        if question.key in by_key:
            raise DataError(
                f"{where}: the question {shown(question.key)} is there twice; remove one"
            )
        by_key[question.key] = question
    if not by_key:
        raise DataError(f"{where}: has no questions; copy the annotation files again")
    return tuple(by_key.values())


class MediaFolder:
    """The media below a folder, found by name.

    Links within the folder are followed, because copies from the hub consist of them.

    Args:
      root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root.resolve()

    def locate(
        self,
        name: str,
        key: str,
        kind: Literal["video", "image"] = "video",
        folders: Sequence[str] = (),
    ) -> Media:
        """The medium with a name. A missing one is no error: it gets the path expected first.

        A file in another folder is taken if no other has the same name.

        Args:
          name: file name or relative path, with or without a suffix.
          key: the question, for messages.
          kind: whether it is a video (also a folder of frames) or an image.
          folders: relative folders that the benchmark's archives make; the first is preferred.

        Raises:
          RecordError: the name is no relative path, or several files fit equally well.
        """
        if not _is_unicode(name) or "\0" in name or not name.strip():
            raise RecordError(key, "a media path is empty or has characters that no path has")
        encoded = os.fsencode(name)
        if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
            raise RecordError(key, f"the media path {shown(name)} is too long for a file's name")
        if os.path.isabs(name) or ".." in name.split("/"):
            raise RecordError(key, f"the media path {shown(name)} leaves the root folder")
        stem, suffix = _split_suffix(name)
        expected = os.path.join(self.root, *folders[:1], name)
        for ending in ("",) if suffix else ("", *SUFFIXES[kind]):
            if os.path.exists(expected + ending):
                return Media(expected + ending, kind)
        fitting = [
            path
            for path in self._by_name.get(os.path.basename(stem), ())
            if _split_suffix(path)[1] in (*SUFFIXES[kind], *([""] if kind == "video" else ()))
        ]
        places = [*(os.path.join(folder, stem) for folder in folders), stem, os.path.basename(stem)]
        for place in places:
            found = [p for p in fitting if _split_suffix(p)[0].endswith(os.path.join("/", place))]
            if len(found) > 1 and suffix:
                found = [path for path in found if path.endswith(suffix)] or found
            if len(found) == 1:
                return Media(found[0], kind)
            if found and "/" in place:
                listed = " and ".join(os.path.relpath(path, self.root) for path in found[:2])
                raise RecordError(key, f"the medium {shown(name)} is {listed}; remove one of them")
        return Media(expected if suffix else expected + SUFFIXES[kind][0], kind)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The files of media and the folders of images, by their name without a suffix."""
        found: dict[str, list[str]] = {}
        visited: set[str] = set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            # Links may form a circle, or lead to a folder above, such as /, which holds the root.
            above = self.root.is_relative_to(real) and folder != str(self.root)
            if real in visited or above:
                folders.clear()
                continue
            visited.add(real)
            folders.sort()
            media = [name for name in sorted(files) if _split_suffix(name)[1]]
            for name in media:
                stem = _split_suffix(name)[0]
                found.setdefault(stem, []).append(os.path.join(folder, name))
            if any(_split_suffix(name)[1] in IMAGE_SUFFIXES for name in media):
                found.setdefault(os.path.basename(folder), []).append(folder)
        return found


def _split_suffix(name: str) -> tuple[str, str]:
    """A path without the suffix of a medium, and that suffix; other periods are part of a name."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix.lower()) if suffix.lower() in MEDIA_SUFFIXES else (name, "")
