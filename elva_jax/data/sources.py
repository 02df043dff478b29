"""The table of readers, which open data sets by name as random-access sequences of examples.

The suffix of a file selects its reader in `FILE_READERS`; the prefix `hf:` marks a Hugging Face
folder. Any other name is a TFDS data set, whose record format has its reader in `READERS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from elva_jax.config.schema import SourceConfig
from elva_jax.data import record as built
from elva_jax.data.example import Example
from elva_jax.data.readers import moving_shapes, paths
from elva_jax.data.readers.huggingface import HuggingFaceFolder
from elva_jax.data.readers.json_file import JsonFile
from elva_jax.data.readers.webdataset import WebDataset
from elva_jax.data.readers.webvid import WebVidFile
from elva_jax.errors import DataError, RecordError, first_line
from elva_jax.utils.read import refuse_irregular

Record = Mapping[str, Any]
RecordReader = Callable[[Record, Sequence[str]], Example]  # (record, tasks) -> example
HUGGING_FACE = "hf:"  # prefix of Hugging Face folders
PROBES, FEWEST = 16, 4  # records that are looked at; media that say enough about a folder
TFDS_NAME = re.compile(r"[a-zA-Z]\w*")  # followed by the config and the version in a TFDS name


def check_files(mixture: Mapping[str, SourceConfig], data_root: str, where: str) -> None:
    """Checks that the files of a mixture exist.

    Raises:
      DataError: files are missing; the message lists them and the folder they are relative to.
    """
    missing = {}
    for label, source in mixture.items():
        path = _resolve(data_root, source.name)
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


def check_media(examples: Sequence[Example], where: str) -> None:
    """Checks that the folder of media is the right one, by records from all over a source.

    Raises:
      DataError: of all their media, not one file exists.
    """
    if not isinstance(examples, (JsonFile, WebVidFile)):  # the others hold their media
        return
    media: list[str] = []
    for index in range(0, len(examples), len(examples) // PROBES + 1):
        with contextlib.suppress(RecordError):  # counted when it is read
            sources = [medium.source for medium in examples[index].media]
            media += [source for source in sources if isinstance(source, str)]
    if len(media) >= FEWEST:
        paths.check_some_exist(
            media,
            f"{where}: none of {len(media)} media of {examples.files[0]} exists, such as"
            f" {media[0]}; set its root to the folder that its paths are relative to",
        )


def _resolve(data_root: str, name: str) -> Path:
    """The path of a source's file or folder: absolute, in the user's home, or under the root."""
    return Path(data_root).expanduser() / Path(name).expanduser()


def open_examples(
    source: SourceConfig, data_dir: str | Path, data_root: str = ""
) -> Sequence[Example]:
    """Opens one entry of a mixture (see `config.schema.source`) for random access.

    Reading an example of it raises RecordError if that record is malformed.

    Args:
      source: the entry.
      data_dir: the folder of built data sets.
      data_root: the folder that files and media folders are relative to.

    Raises:
      DataError: the data set, file or folder does not exist, or the file has another format.
    """
    opener = FILE_READERS.get(Path(source.name).suffix.lower())
    root = str(_resolve(data_root, source.root)) if source.root else ""
    examples: Sequence[Example]
    if source.name.startswith(HUGGING_FACE):
        folder = _resolve(data_root, source.name.removeprefix(HUGGING_FACE))
        examples = HuggingFaceFolder(folder, source.split, root)
    elif opener is None:
        return _BuiltExamples(source.name, source.split, data_dir, tuple(source.tasks))
    else:
        examples = opener(_resolve(data_root, source.name), root)
    if len(examples) == 0:
        raise DataError(f"{source.name}: has no records")
    return examples


def is_file(name: str) -> bool:
    """Whether a name is that of a file or a Hugging Face folder instead of a built data set."""
    return name.startswith(HUGGING_FACE) or Path(name).suffix.lower() in FILE_READERS


class _BuiltExamples(Sequence[Example]):
    """The examples of a built TFDS data set.

    Attributes:
      records: the records, decoded by TFDS.
      read: converts a record to an example.
      files: the metadata file, which lists the shards and their sizes.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path, tasks: tuple[str, ...]):
        builder = _builder(name, data_dir)
        self.records, self.tasks = _records(builder, split), tasks
        self.read = _reader_of(name, builder)
        self.files = [Path(builder.data_dir) / "dataset_info.json"]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        return self.read(self.records[index], self.tasks)


def open_source(name: str, split: str, data_dir: str | Path) -> Sequence[Record]:
    """Opens one split of a built data set for random access.

    Args:
      name: TFDS name, such as moving_shapes/easy.
      split: name of the split; TFDS slices such as `train[:100]` work.
      data_dir: the folder of built data sets.

    Raises:
      DataError: the data set or split does not exist, or its records have no reader in `READERS`.
    """
    reader(name)
    return _records(_builder(name, data_dir), split)


def _builder(name: str, data_dir: str | Path) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set under `data_dir`."""
    base = name.split("/")[0]
    if not TFDS_NAME.fullmatch(base):
        known = ", ".join((*READERS, *FILE_READERS, f"{HUGGING_FACE}FOLDER"))
        raise DataError(
            f"{name}: no reader for this data set; there are {known}, and the names that"
            " `elva data build` gave"
        )
    folder = Path(data_dir) / name
    for inner in (folder, *folder.glob("*/"), *folder.glob("*/*/")):  # configuration, version
        refuse_irregular(inner)  # a named pipe in the place of a shard would be read for ever
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
        command = base if base in READERS else f"SOURCE --name {base}"
        raise DataError(
            f"{folder}: no such data set; build it with `elva data build {command}`, or set"
            " data_dir"
        ) from None


@dataclasses.dataclass(frozen=True)
class _Records(Sequence[Record]):
    """The records of a split; a damaged one raises DataError."""

    records: Sequence[Record]
    folder: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices
        if index >= len(self):  # iteration needs IndexError, but TFDS raises another error
            raise IndexError(index)
        try:
            return self.records[index]
        except (RuntimeError, OSError) as error:  # ArrayRecord's
            raise DataError(
                f"{self.folder}: record {index} cannot be read ({first_line(error)}); build the"
                " data set again"
            ) from None


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Record]:
    known = ", ".join(sorted(builder.info.splits))
    try:
        records = builder.as_data_source(split=split)
        count = len(records)
    except RuntimeError as error:  # ArrayRecord's
        raise DataError(
            f"{builder.data_dir}: split '{split}' is damaged ({first_line(error)}); build it again"
        ) from None
    except (ValueError, KeyError):
        raise DataError(f"{builder.data_dir}: no split '{split}'; it has {known}") from None
    if count == 0:
        raise DataError(f"{builder.data_dir}: split '{split}' is empty")
    return _Records(records, str(builder.data_dir))


def _reader_of(name: str, builder: tfds.core.DatasetBuilder) -> RecordReader:
    """The reader of a data set, chosen by the fields of its records or by its name."""
    return built.to_example if set(builder.info.features) == set(built.features()) else reader(name)


def to_example(record: Record, tasks: Sequence[str] = (), name: str = "moving_shapes") -> Example:
    """Converts a record of the data set `name` to an example with the turns of `tasks`; (): all.

    Raises:
      DataError: the record is malformed.
    """
    return reader(name)(record, tuple(tasks))


def reader(name: str) -> RecordReader:
    """The reader of a data set's records, chosen by the first part of its name."""
    try:
        return READERS[name.split("/")[0]]
    except KeyError:
        what = "is a file or folder, not a built data set" if is_file(name) else "is not known here"
        known = ", ".join(READERS)
        raise DataError(
            f"{name}: {what}; only built data sets of {known} can be read here"
            f" (elva data build {known})"
        ) from None


READERS: dict[str, RecordReader] = {"moving_shapes": moving_shapes.to_example}
FILE_READERS: dict[str, Callable[[Path, str], Sequence[Example]]] = {
    ".json": JsonFile,
    ".jsonl": JsonFile,
    ".csv": WebVidFile,
    ".tar": lambda pattern, root: WebDataset(pattern),
}
