"""Hugging Face dataset folders: Arrow files of `save_to_disk`, and Parquet files of the hub."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from elva_jax.data.example import Example
from elva_jax.data.readers import chat, fields, paths, records
from elva_jax.errors import DataError, RecordError, first_line
from elva_jax.utils.read import open_regular, read_json


class ArrowFile:
    """Record batches of a memory-mapped file in Arrow's stream format."""

    def __init__(self, path: Path):
        self.path = path
        self._batches: list[pa.RecordBatch] | None = None
        self.counts = [batch.num_rows for batch in self._map()]
        self.columns = self._map()[0].schema.names if self.counts else []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None}  # not pickled: each worker maps the file itself

    def rows(self, part: int) -> pa.RecordBatch:
        """Reads one record batch."""
        return self._map()[part]

    def _map(self) -> list[pa.RecordBatch]:
        if self._batches is None:
            self._batches = list(pa.ipc.open_stream(pa.memory_map(str(self.path))))
        return self._batches


class ParquetFile:
    """Row groups of a Parquet file; the last one read is cached for sequential reading."""

    def __init__(self, path: Path):
        self.path = path
        self._last: tuple[int, pa.Table] | None = None
        with pq.ParquetFile(path) as file:
            self.counts = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            self.columns = file.schema_arrow.names

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def rows(self, part: int) -> pa.Table:
        """Reads one row group."""
        last = self._last
        if last is None or last[0] != part:
            with pq.ParquetFile(self.path) as file:
                self._last = last = (part, file.read_row_group(part))
        return last[1]


class HuggingFaceFolder(Sequence[Example]):
    """The rows of a split; media are bytes or paths under the root.

    The columns `image`, `images`, `video` and `videos` hold media. A row is a conversation (see
    `chat.to_example`), or has a `caption` or `text`. Arrow files are memory-mapped, so only the
    requested row is read; of Parquet files, a whole row group is read and cached.

    Args:
      folder: a Dataset or DatasetDict saved to disk, or a folder of Parquet files whose names
        begin with their split (data/train-0….parquet).
      split: name of the split; "": the only one.
      root: the folder that paths are relative to; "": that of the data set.

    Raises:
      DataError: a folder, split or file is missing or broken.
    """

    def __init__(self, folder: str | Path, split: str = "", root: str = ""):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder")
        self.root = paths.root_folder(root, self.folder / "data")
        self.files = _choose(self.folder, split)
        self.tables = [_open(path) for path in self.files]
        self.parts = [
            (k, part) for k, table in enumerate(self.tables) for part in range(len(table.counts))
        ]
        self.ends = list(
            itertools.accumulate(count for table in self.tables for count in table.counts)
        )

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Reads a row.

        Raises:
          RecordError: the row is malformed; the message names its file and its index.
        """
        number = bisect.bisect_right(self.ends, index)
        k, part = self.parts[number]
        key = f"{self.files[k].name}[{index}]"
        try:
            rows = self.tables[k].rows(part)
        except (OSError, pa.ArrowException) as error:
            raise RecordError(key, f"cannot be read ({first_line(error)})") from None
        row = rows.slice(index - (self.ends[number - 1] if number else 0), 1).to_pylist()[0]
        return _to_example(
            {name: value for name, value in row.items() if value is not None}, key, self.root
        )


def _to_example(row: Mapping[str, Any], key: str, root: Path) -> Example:
    def locate(medium: object) -> bytes | str:
        if isinstance(medium, dict):  # how `datasets` stores an Image or Video
            medium = medium.get("bytes") or medium.get("path")
        return medium if isinstance(medium, bytes) else paths.inside(root, medium, key)

    if chat.has_turns(row):
        return chat.to_example(row, key, locate)
    media = chat.media(row, key, locate)
    if not media:
        raise RecordError(key, "has neither a conversation nor a medium")
    caption = next(
        (row[field] for field in records.CAPTIONS if isinstance(row.get(field), str)), ""
    )
    return records.captioned(key, fields.excerpts(row, media, key), caption)


def _choose(folder: Path, split: str) -> list[Path]:
    """Chooses the files of a split, in order."""
    splits = _splits(folder)
    if not splits:
        raise DataError(f"{folder}: no data set saved to disk, and no Parquet files")
    if not split and len(splits) > 1:
        raise DataError(f"{folder}: has several splits; set split to one of {', '.join(splits)}")
    if split and split not in splits:
        raise DataError(f"{folder}: no split '{split}'; it has {', '.join(splits)}")
    return splits[split or next(iter(splits))]


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The files of every split."""
    try:
        if (folder / "dataset_dict.json").is_file():
            return {
                name: _saved(folder / name)
                for name in read_json(folder / "dataset_dict.json")["splits"]
            }
        if (folder / "state.json").is_file():
            info = read_json(folder / "state.json")
            return {info.get("_split") or "train": _saved(folder)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: a broken data set ({type(error).__name__}: {error})") from None
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        name = path.stem.split("-")[0]
        splits.setdefault(
            path.parent.name if name.isdigit() or name == "part" else name, []
        ).append(path)
    return splits


def _saved(folder: Path) -> list[Path]:
    return [folder / file["filename"] for file in read_json(folder / "state.json")["_data_files"]]


def _open(path: Path) -> ArrowFile | ParquetFile:
    open_regular(path).close()
    try:
        opened = ParquetFile(path) if path.suffix == ".parquet" else ArrowFile(path)
        names = list(opened.columns)
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{path}: two columns '{twice[0]}'; rename one of them")
        return opened
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]})"
        ) from None
