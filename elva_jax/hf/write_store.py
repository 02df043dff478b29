"""Writing a folder of weights in Hugging Face's layout, with checksums."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from elva_jax.errors import ConvertError
from elva_jax.hf.checksums import CHECKSUMS, record
from elva_jax.hf.safetensors_io import DTYPES, Entry
from elva_jax.hf.tensor_store import SAFE_INDEX, TensorStore
from elva_jax.utils.owner import own


def write_store(
    path: str | Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int = 5 * 10**9,
    files: Mapping[str, bytes | Path] | None = None,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> None:
    """Writes safetensors files with one tensor in memory at a time, and their checksums.json.

    Args:
      path: a folder that does not exist yet, or is empty.
      tensors: names and values.
      shard_bytes: largest size of a file, unless a single tensor is larger.
      files: other files of the folder by name: their content, or a file to copy.
      metadata: strings for the headers; the default is {"format": "pt"}, which transformers needs.
      stem: beginning of the names of the safetensors files.

    Raises:
      ConvertError: a target that is not empty, a repeated name, or a dtype that safetensors lacks.
    """
    with whole_folder(Path(path)) as folder:
        raw = folder / "weights.raw"
        entries = _write_raw(raw, tensors)
        if not entries:
            raise ConvertError(f"{path}: no tensors to write")
        pattern = f"{stem}{{suffix}}.safetensors"
        sums = _write_shards(raw, entries, shard_bytes, pattern, dict(metadata or {"format": "pt"}))
        raw.unlink()
        checksums = json.dumps(sums, indent=2).encode() + b"\n"
        for name, content in {**(files or {}), CHECKSUMS: checksums}.items():
            if isinstance(content, Path):
                shutil.copyfile(content, folder / name)
            else:
                (folder / name).write_bytes(content)


def _write_raw(raw: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, Entry]:
    """Writes the values alone, one after the other.

    safetensors takes all tensors of a file at once: it gets views of this file's memory map.
    """
    entries: dict[str, Entry] = {}
    with raw.open("wb") as sink:
        for name, value in tensors:
            if name in entries:
                raise ConvertError(f"{name}: given twice")
            if value.dtype not in DTYPES.values():
                raise ConvertError(
                    f"{name}: has dtype {value.dtype}, which safetensors cannot hold; cast it"
                )
            begin = sink.tell()
            sink.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
            entries[name] = Entry(
                file=raw, dtype=value.dtype, shape=value.shape, begin=begin, end=sink.tell()
            )
    return entries


def _write_shards(
    raw: Path, entries: dict[str, Entry], shard_bytes: int, pattern: str, metadata: dict[str, str]
) -> dict[str, Any]:
    """Writes the safetensors files beside the raw one, and their index; records of the files."""
    folder = raw.parent
    split = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: entry.nbytes,
        filename_pattern=pattern,
        max_shard_size=shard_bytes,
    )
    store, remaining, sums = TensorStore(folder, {}, entries), dict(entries), {}
    # From the last file to the first, so that the raw file shrinks as they grow.
    for file, names in reversed(split.filename_to_tensors.items()):
        save_file({name: store.read(name) for name in names}, folder / file, metadata)
        with (folder / file).open("rb") as written:
            os.fsync(written.fileno())
        sums[file] = record(folder / file)
        for name in names:
            store.release(name)
            del remaining[name]
        os.truncate(raw, max((entry.end for entry in remaining.values()), default=0))
    if split.is_sharded:
        weight_map = dict(sorted(split.tensor_to_filename.items()))
        index = {"metadata": split.metadata, "weight_map": weight_map}
        (folder / SAFE_INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return sums


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` at the end, or is removed on an error.

    It lies in `.<name>.tmp`, which one process owns; what a killed one left there is removed.

    Raises:
      ConvertError: a target that is not empty.
      StartError: another process writes it.
    """
    target = target.absolute()
    refuse_occupied(target)
    place = target.with_name(f".{target.name}.tmp")
    place.mkdir(parents=True, exist_ok=True)
    folder = place / "new"
    try:
        with own(place):
            refuse_occupied(target)  # the owner before may have written it
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                yield folder
                folder.rename(target)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # another process has asked for it by now
            place.rmdir()


def refuse_occupied(target: Path) -> None:
    """Raises ConvertError if the target exists and is not an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConvertError(f"{target}: exists already; remove it, or choose another place")
