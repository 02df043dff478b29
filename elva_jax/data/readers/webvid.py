"""WebVid's CSV files with a clip and its caption per row; random access by byte offsets."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from elva_jax.data.example import Example, Media
from elva_jax.data.readers import fields, paths, records
from elva_jax.errors import DataError, RecordError
from elva_jax.utils.read import read_lines

COLUMNS = ("videoid", "name")  # required; page_dir is optional


class WebVidFile(Sequence[Example]):
    """The rows of a WebVid CSV: `name` is the caption of the clip `page_dir/videoid.mp4`.

    Args:
      path: a CSV file with a header.
      root: the folder of the clips; "": that of the file.

    Raises:
      DataError: the file or folder does not exist, or the file has another format; the message
        names the line.
    """

    def __init__(self, path: str | Path, root: str = ""):
        self.path = Path(path)
        self.files = [self.path]
        self.root = paths.root_folder(root, self.path)
        spans = np.fromiter(_rows(self.path), np.dtype((np.int64, 3)))
        self.spans_Nx3 = spans[1:]  # first byte, end, line number from 1
        try:
            self.columns = (
                self._row(int(spans[0, 0]), int(spans[0, 1]), "line 1") if len(spans) else []
            )
        except RecordError as error:
            raise DataError(f"{self.path}: {error}") from None
        if twice := [column for column in self.columns if self.columns.count(column) > 1]:
            raise DataError(f"{self.path}: line 1: two columns '{twice[0]}'; rename one of them")
        for column in COLUMNS:
            if column not in self.columns:
                raise DataError(
                    f"{self.path}: line 1: no column '{column}'; "
                    f"a WebVid CSV has {', '.join((*COLUMNS, 'page_dir'))}"
                )

    def __len__(self) -> int:
        return len(self.spans_Nx3)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Reads a row.

        Raises:
          RecordError: the row is malformed; the message names its line.
        """
        start, end, line = self.spans_Nx3[index].tolist()
        key = f"{self.path.name}:{line}"
        values = self._row(start, end, key)
        if len(values) != len(self.columns):
            raise RecordError(key, f"does not have the header's {len(self.columns)} columns")
        row = dict(zip(self.columns, values, strict=True))
        if not row["videoid"]:
            raise RecordError(key, "has no videoid")
        clip = "/".join(filter(None, (row.get("page_dir", ""), f"{row['videoid']}.mp4")))
        video = Media(paths.inside(self.root, clip, key), "video")
        return records.captioned(key, fields.excerpts(row, [video], key), row["name"])

    def _row(self, start: int, end: int, key: str) -> list[str]:
        text = records.decode(records.read_span(self.path, start, end), key, "utf-8-sig")
        try:
            return next(csv.reader([text], strict=True), [])
        except csv.Error as error:
            raise RecordError(key, f"is not CSV ({error})") from None


def _rows(path: Path) -> Iterator[tuple[int, int, int]]:
    """(first byte, end, line from 1) of the header and every row; quoted fields may span lines."""
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for line in read_lines(path):
            position += len(line)
            # Latin-1 has one character per byte, and CSV's syntax is ASCII.
            yield line.decode("latin-1")

    reader, start, line = csv.reader(lines(), strict=True), 0, 1
    try:
        for row in reader:
            if row:
                yield start, position, line
            start, line = position, reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: broken CSV ({error})") from None
