"""The table of readers: data sets by name, as random-access sequences of examples.

A file's suffix chooses its reader in `FILE_READERS`, and `hf:` before a folder Hugging Face's. Any
other name is one of TFDS; a new record format of those is one reader in `READERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from elva_jax.config.schema import SourceConfig
from elva_jax.data import record as built
from elva_jax.data.example import Example
from elva_jax.data.readers import moving_shapes
from elva_jax.data.readers.huggingface import HuggingFaceFolder
from elva_jax.data.readers.json_file import JsonFile
from elva_jax.data.readers.webdataset import WebDataset
from elva_jax.data.readers.webvid import WebVidFile
from elva_jax.errors import DataError

Record = Mapping[str, Any]
RecordReader = Callable[[Record, Sequence[str]], Example]  # of a record, and the tasks wanted
HUGGING_FACE = "hf:"  # prefix of a folder
TFDS_NAME = re.compile(r"[a-zA-Z]\w*")  # before the config and the version


def check_files(mixture: Mapping[str, SourceConfig], data_root: str, where: str) -> None:
    """Checks that the files of a mixture exist.

    Raises:
      DataError: the missing ones, and where they were looked for.
    """
    missing = {}
    for label, source in mixture.items():
        path = _under(data_root, source.name)
        is_pattern = set("{*?[") & set(path.name)
        if path.suffix.lower() in FILE_READERS and not is_pattern and not path.exists():
            missing[label] = str(path)
    if missing:
        listed = ", ".join(f"{label}: {path}" for label, path in missing.items())
        root = f"the working directory {Path.cwd()}, because data_root is empty"
        if data_root:
            root = f"data_root = {data_root}"
        raise DataError(
            f"{where}: no such file: {listed}; names are relative to {root}: "
            "set --config.data_root=FOLDER"
        )


def _under(data_root: str, name: str) -> Path:
    """A source's file or folder: absolute, in the user's home, or under the root."""
    return Path(data_root).expanduser() / Path(name).expanduser()


def open_examples(
    source: SourceConfig, data_dir: str | Path, data_root: str = ""
) -> Sequence[Example]:
    """Opens one entry of a mixture, `config.schema.source()`, for random access to its examples.

    Args:
      source: the entry.
      data_dir: the folder of built data sets.
      data_root: the folder that files and media folders are relative to.

    Raises:
      DataError: there is no such data set, file or folder, or the file is of another format.
        Reading an example raises RecordError where that record alone is malformed.
    """
    opener = FILE_READERS.get(Path(source.name).suffix.lower())
    root = str(_under(data_root, source.root)) if source.root else ""
    examples: Sequence[Example]
    if source.name.startswith(HUGGING_FACE):
        folder = _under(data_root, source.name.removeprefix(HUGGING_FACE))
        examples = HuggingFaceFolder(folder, source.split, root)
    elif opener is None:
        return _Built(source.name, source.split, data_dir, tuple(source.tasks))
    else:
        examples = opener(_under(data_root, source.name), root)
    if len(examples) == 0:
        raise DataError(f"{source.name}: has no records")
    return examples


def is_file(name: str) -> bool:
    """Whether a source is a file or a Hugging Face folder, rather than a built data set."""
    return name.startswith(HUGGING_FACE) or Path(name).suffix.lower() in FILE_READERS


class _Built(Sequence[Example]):
    """The examples of a built TFDS data set.

    Attributes:
      records: the records that TFDS decodes.
      read: makes an example of a record.
      files: the metadata file, which names the shards and their sizes.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path, tasks: tuple[str, ...]):
        builder = _builder(name, data_dir)
        self.records, self.tasks = _records(builder, split), tasks
        self.read = _reader_of(name, builder)
        self.files = [Path(builder.data_dir) / "dataset_info.json"]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        if index >= len(self):  # TFDS raises another error, which does not end an iteration
            raise IndexError(index)
        return self.read(self.records[index], self.tasks)


def open_source(name: str, split: str, data_dir: str | Path) -> Sequence[Record]:
    """Opens one split of a built data set for random access.

    Args:
      name: TFDS name, such as moving_shapes/easy.
      split: split of it; TFDS slices such as `train[:100]` work.
      data_dir: the folder under which data sets were built.

    Raises:
      DataError: the data set or the split is not there, or no reader knows the format.
    """
    return _records(_builder(name, data_dir), split)


def _builder(name: str, data_dir: str | Path) -> tfds.core.DatasetBuilder:
    """The builder of a data set under `data_dir`."""
    base = name.split("/")[0]
    if not TFDS_NAME.fullmatch(base):
        raise _unknown(name)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
        command = base if base in READERS else f"SOURCE --name {base}"
        raise DataError(
            f"{Path(data_dir) / name}: no such data set; "
            f"build it with `elva data build {command}`, or set data_dir"
        ) from None


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Record]:
    known = ", ".join(sorted(builder.info.splits))
    try:
        records = builder.as_data_source(split=split)
    except (ValueError, KeyError):
        raise DataError(f"{builder.data_dir}: no split '{split}'; it has {known}") from None
    if len(records) == 0:
        raise DataError(f"{builder.data_dir}: split '{split}' is empty")
    return records


def _reader_of(name: str, builder: tfds.core.DatasetBuilder) -> RecordReader:
    """The reader of a data set, chosen by the fields of its records, or else by its name."""
    return built.to_example if set(builder.info.features) == set(built.features()) else reader(name)


def to_example(record: Record, tasks: Sequence[str] = (), name: str = "moving_shapes") -> Example:
    """Makes an example of a record of the data set `name`, with the turns of `tasks`; () takes all.

    Raises:
      DataError: a record that is malformed.
    """
    return reader(name)(record, tuple(tasks))


def reader(name: str) -> RecordReader:
    """The reader of a data set's records, by the first part of its name."""
    try:
        return READERS[name.split("/")[0]]
    except KeyError:
        raise _unknown(name) from None


def _unknown(name: str) -> DataError:
    known = ", ".join((*READERS, *FILE_READERS, f"{HUGGING_FACE}FOLDER"))
    return DataError(f"{name}: no reader for this data set; there are {known}")


READERS: dict[str, RecordReader] = {"moving_shapes": moving_shapes.to_example}
FILE_READERS: dict[str, Callable[[Path, str], Sequence[Example]]] = {
    ".json": JsonFile,
    ".jsonl": JsonFile,
    ".csv": WebVidFile,
    ".tar": lambda pattern, root: WebDataset(pattern),
}
