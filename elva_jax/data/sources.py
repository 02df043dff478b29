"""Data sets by name, as random-access sequences of examples: the rest of the pipeline sees only `open_examples`.

A file's suffix chooses its reader in `FILE_READERS`, and `hf:` before a folder Hugging Face's; any other name is one of TFDS, and a new
format of those is one reader in `READERS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from elva_jax.data import record as built
from elva_jax.data.conversation import choice_prompt
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.readers.huggingface import HuggingFaceFolder
from elva_jax.data.readers.json_file import JsonFile
from elva_jax.data.readers.webdataset import WebDataset
from elva_jax.data.readers.webvid import WebVidFile
from elva_jax.errors import DataError, RecordError

Record = Mapping[str, Any]
HUGGING_FACE = "hf:"  # in front of a folder
NAME = re.compile(r"[a-zA-Z]\w*")  # of a TFDS data set, before its config and version


def check_files(mixture: Mapping[str, ConfigDict], data_root: str, where: str) -> None:
    """Says at once which files of a mixture are not there, and where they were looked for.

    Raises:
      DataError: one or more are missing.
    """
    missing = {}
    for label, source in mixture.items():
        path = _under(data_root, source.name)
        if (
            path.suffix.lower() in FILE_READERS
            and not set("{*?[") & set(path.name)
            and not path.exists()
        ):
            missing[label] = str(path)
    if missing:
        listed = ", ".join(f"{label}: {path}" for label, path in missing.items())
        root = (
            f"data_root = {data_root}"
            if data_root
            else f"the working directory {Path.cwd()}, because data_root is empty"
        )
        raise DataError(
            f"{where}: no such file: {listed}; names are relative to {root}: set --config.data_root=FOLDER"
        )


def _under(data_root: str, name: str) -> Path:
    """A source's file or folder: absolute, in the user's home, or under the root."""
    return Path(data_root).expanduser() / Path(name).expanduser()


def open_examples(
    source: ConfigDict, data_dir: str | Path, data_root: str = ""
) -> Sequence[Example]:
    """Opens one entry of a mixture, `config.schema.source()`, for random access to its examples.

    Args:
      source: the entry.
      data_dir: the folder of built data sets.
      data_root: the folder that files and media folders are relative to.

    Raises:
      DataError: there is no such data set, file or folder, or the file is not what it claims to be. Reading an example raises
        RecordError where that record alone is malformed.
    """
    opener = FILE_READERS.get(Path(source.name).suffix.lower())
    root = str(_under(data_root, source.root)) if source.root else ""
    if source.name.startswith(HUGGING_FACE):
        examples = HuggingFaceFolder(
            _under(data_root, source.name.removeprefix(HUGGING_FACE)), source.split, root
        )
    elif opener is None:
        return _Built(source.name, source.split, data_dir, tuple(source.tasks))
    else:
        examples = opener(_under(data_root, source.name), root)
    if len(examples) == 0:
        raise DataError(f"{source.name}: has no records")
    return examples


def is_file(name: str) -> bool:
    """Whether a source is a file or a Hugging Face folder, and not a data set that was built."""
    return name.startswith(HUGGING_FACE) or Path(name).suffix.lower() in FILE_READERS


class _Built(Sequence[Example]):
    """The examples of a built TFDS data set.

    Attributes:
      records: as TFDS decodes them.
      files: the metadata, which names the shards and their sizes.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path, tasks: tuple[str, ...]):
        builder = _builder(name, data_dir)
        self.records, self.read, self.tasks = (
            _records(builder, split),
            _reader_of(name, builder),
            tasks,
        )
        self.files = [Path(builder.data_dir) / "dataset_info.json"]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
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
    """What TFDS finds under `data_dir`."""
    base = name.split("/")[0]
    if not NAME.fullmatch(base):
        raise _unknown(name)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
        way = (
            f"`elva data build {base}`"
            if base in READERS
            else f"`elva data build SOURCE --name {base}`"
        )
        raise DataError(
            f"{Path(data_dir) / name}: no such data set; build it with {way}, or set data_dir"
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


def _reader_of(
    name: str, builder: tfds.core.DatasetBuilder
) -> Callable[[Record, tuple[str, ...]], Example]:
    """The reader of a data set by what its records are, or else by its name."""
    return built.to_example if set(builder.info.features) == set(built.features()) else reader(name)


def to_example(record: Record, tasks: Sequence[str] = (), name: str = "moving_shapes") -> Example:
    """Turns one record of the data set `name` into an example with the turns of `tasks`; () takes all.

    Raises:
      DataError: a record that is malformed.
    """
    return reader(name)(record, tuple(tasks))


def reader(name: str) -> Callable[[Record, tuple[str, ...]], Example]:
    """The reader of a data set's records, by the first part of its name."""
    try:
        return READERS[name.split("/")[0]]
    except KeyError:
        raise _unknown(name) from None


def _unknown(name: str) -> DataError:
    known = ", ".join((*READERS, *FILE_READERS, f"{HUGGING_FACE}FOLDER"))
    return DataError(f"{name}: no reader for this data set; there are {known}")


def annotation(record: Record) -> dict[str, Any]:
    """The decoded annotation of a moving_shapes record."""
    return json.loads(_text(record["annotation"]))


def _text(value: Any) -> str:
    """TFDS gives text as bytes, or as an object array around them."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode() if isinstance(value, bytes) else value


def _moving_shapes(record: Record, tasks: tuple[str, ...]) -> Example:
    key = _text(record["id"])
    try:
        notes = annotation(record)
        turns = [
            Turn(t["question"], t["answer"], task)
            for task in ("object", "caption")
            for t in notes["captions"].get(task, ())
        ]
        for k, q in enumerate(notes["questions"]):
            options, about = tuple(q.get("options") or ()), f"question {k}"
            turns.append(Turn(q["question"], q["answer"], "open", q["family"], options, about))
            if options:
                turns.append(
                    Turn(
                        choice_prompt(q["question"], options),
                        q["letter"],
                        "choice",
                        q["family"],
                        options,
                        about,
                    )
                )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(
            key, f"malformed annotation ({type(error).__name__}: {getattr(error, 'msg', error)})"
        ) from None
    media = record["media"]
    source = media.item() if hasattr(media, "item") else media
    return Example(
        key,
        (Media(source, _text(record["kind"])),),
        tuple(turn for turn in turns if not tasks or turn.task in tasks),
        independent=True,
    )


READERS: dict[str, Callable[[Record, tuple[str, ...]], Example]] = {"moving_shapes": _moving_shapes}
FILE_READERS: dict[str, Callable[[Path, str], Sequence[Example]]] = {
    ".json": JsonFile,
    ".jsonl": JsonFile,
    ".csv": WebVidFile,
    ".tar": lambda pattern, root: WebDataset(pattern),
}
