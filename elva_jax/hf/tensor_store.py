"""The tensors of a folder in Hugging Face's layout, read one by one from memory maps."""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from elva_jax.errors import ConvertError, first_line
from elva_jax.hf.checksums import check_bytes
from elva_jax.hf.config_values import check_values
from elva_jax.hf.pickles import unpickle
from elva_jax.hf.safetensors_io import Entry, all_finite, read_header
from elva_jax.utils import read
from elva_jax.utils.background import checking
from elva_jax.utils.numbers import shown

SAFE_INDEX, SAFE_FILE = "model.safetensors.index.json", "model.safetensors"
PICKLE_INDEX, PICKLE_FILE = "pytorch_model.bin.index.json", "pytorch_model.bin"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
CONFIGS = ("config.json", "open_clip_config.json")
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
# Weights, configuration and tokenizer.
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


class TensorStore:
    """The tensors of a folder by name; each is read when it is asked for. See `open_store`.

    Args:
      path: the folder.
      config: content of its config.json; {} if it has none.
      entries: the places of the tensors by name.
      tensors: the tensors themselves if they came from a pickle; otherwise files are mapped.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        entries: Mapping[str, Entry],
        tensors: Mapping[str, np.ndarray] | None = None,
    ):
        self.path = path
        self.config = config
        self._entries = dict(entries)
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor."""
        return self._entry(name).dtype

    def where(self, name: str) -> str:
        """File and name of a tensor, for messages."""
        return f"{self._entry(name).file}: {name}"

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    def read(self, name: str) -> np.ndarray:
        """A read-only view of a tensor in its file.

        Raises:
          ConvertError: there is no such tensor.
        """
        entry = self._entry(name)
        if self._tensors is not None:
            return self._tensors[name]
        if not entry.nbytes:
            return np.zeros(entry.shape, entry.dtype)
        count = entry.nbytes // entry.dtype.itemsize
        flat = np.frombuffer(self._map(entry.file), entry.dtype, count, entry.begin)
        return flat.reshape(entry.shape)

    def prefetch(self, name: str) -> None:
        """Lets the system start to read a tensor, without waiting for it."""
        entry = self._entry(name)
        if self._tensors is None and entry.nbytes:
            first = entry.begin - entry.begin % mmap.PAGESIZE
            self._map(entry.file).madvise(mmap.MADV_WILLNEED, first, entry.end - first)

    def release(self, name: str) -> None:
        """Lets the system reclaim the memory of a tensor, which may be read again."""
        entry = self._entry(name)
        if entry.file in self._maps and entry.nbytes:
            first = entry.begin - entry.begin % mmap.PAGESIZE
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, first, entry.end - first)

    def refuse_non_finite(self, name: str, values: np.ndarray) -> None:
        """Checks a part of a tensor.

        Raises:
          ConvertError: it contains NaN or infinity.
        """
        if not all_finite(values):
            raise ConvertError(
                f"{self.where(name)} holds values that are not finite; the file is damaged, or the"
                " training diverged"
            )

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise ConvertError(f"{self.path}: holds no tensor named {name}")
        return self._entries[name]

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


def open_store(path: str | Path, *, allow_pickle: bool = False) -> TensorStore:
    """Opens a folder in Hugging Face's layout (safetensors files), or downloads one from the hub.

    Files are compared with checksums.json if the folder has one, and with their names in the hub's
    cache, which are their SHA-256.

    Args:
      path: a folder, or a hub name such as Qwen/Qwen2-1.5B.
      allow_pickle: whether .bin, .pt and .pth files may be read (torch.load with weights_only=True)
        if there is no safetensors file.

    Raises:
      ConvertError: nothing to open, an adapter without its base, a pickle without allow_pickle, or
        files that are damaged or contradict each other.
    """
    folder, config = _open_folder(path, allow_pickle=allow_pickle)
    if files := _weight_files(folder, SAFE_INDEX, (".safetensors",)):
        check_bytes(folder, files)
        return _open_safe(folder, config, files)
    if files := _weight_files(folder, PICKLE_INDEX, PICKLE_SUFFIXES):
        return _open_pickles(folder, config, files, allow_pickle=allow_pickle)
    raise _nothing_to_open(folder)


@contextlib.contextmanager
def opening_store(path: str | Path) -> Iterator[TensorStore]:
    """`open_store` of safetensors files that compares checksums while the block reads.

    The block ends when all are right.

    Raises:
      ConvertError: as `open_store`.
    """
    folder, config = _open_folder(path)
    if not (files := _weight_files(folder, SAFE_INDEX, (".safetensors",))):
        if files := _weight_files(folder, PICKLE_INDEX, PICKLE_SUFFIXES):
            refuse_pickle(files[0])
        raise _nothing_to_open(folder)
    with checking(partial(check_bytes, folder, files)):
        yield _open_safe(folder, config, files)


def _open_folder(path: str | Path, *, allow_pickle: bool = False) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, and its configuration."""
    folder = Path(path) if Path(path).is_dir() else _download(str(path), allow_pickle=allow_pickle)
    refuse_adapter(folder)
    return folder, read_config_file(folder)


def _nothing_to_open(folder: Path) -> ConvertError:
    return ConvertError(
        f"{folder}: no model.safetensors, nor {SAFE_INDEX}; give a folder in Hugging Face's layout"
    )


def open_adapter(path: str | Path, *, allow_pickle: bool = False) -> TensorStore:
    """Opens a folder or hub name with a PEFT adapter; `config` is its adapter_config.json.

    Raises:
      ConvertError: as `open_store`, or a folder without an adapter.
    """
    folder = Path(path) if Path(path).is_dir() else _download(str(path), allow_pickle=allow_pickle)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ConvertError(
            f"{folder}: has no {ADAPTER_CONFIG}; give the folder that PEFT's save_pretrained wrote"
        )
    config = read_json(folder / ADAPTER_CONFIG)
    if (folder / ADAPTER_FILE).is_file():
        check_bytes(folder, [folder / ADAPTER_FILE])
        return _open_safe(folder, config, [folder / ADAPTER_FILE])
    if (folder / ADAPTER_PICKLE).is_file():
        files = [folder / ADAPTER_PICKLE]
        return _open_pickles(folder, config, files, allow_pickle=allow_pickle)
    raise ConvertError(f"{folder}: {ADAPTER_FILE} is missing; download it")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    model = (SAFE_FILE, SAFE_INDEX, PICKLE_FILE, PICKLE_INDEX)
    adapter = (ADAPTER_CONFIG, ADAPTER_FILE, ADAPTER_PICKLE)
    return any((folder / name).is_file() for name in adapter) and not any(
        (folder / name).is_file() for name in model
    )


def refuse_adapter(folder: Path) -> None:
    """Raises ConvertError for a PEFT adapter, with what it is and how to put it on its base."""
    if not is_adapter(folder):
        return
    file = folder / ADAPTER_CONFIG
    config = read_json(file) if file.is_file() else {}
    kind = "LoRA" if config.get("peft_type", "LORA") == "LORA" else str(config["peft_type"])[:20]
    base = config.get("base_model_name_or_path")
    raise ConvertError(
        f"{folder}: is a {kind} adapter (PEFT){f' for {base}' if base else ''}, not a model; put it"
        f" on its base: elva convert import BASE DST --adapter {folder}"
    )


def _open_safe(folder: Path, config: dict[str, Any], files: Sequence[Path]) -> TensorStore:
    headers = {file: read_header(file) for file in files}
    return TensorStore(folder, config, _check_index(folder / SAFE_INDEX, headers))


def _open_pickles(
    folder: Path, config: dict[str, Any], files: Sequence[Path], *, allow_pickle: bool
) -> TensorStore:
    if not allow_pickle:
        refuse_pickle(files[0])
    check_bytes(folder, files)
    loaded = {file: unpickle(file) for file in files}
    headers = {file: entries_of(file, tensors) for file, tensors in loaded.items()}
    entries = _check_index(folder / PICKLE_INDEX, headers)
    tensors = {name: value for held in loaded.values() for name, value in held.items()}
    return TensorStore(folder, config, entries, tensors)


def entries_of(file: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, Entry]:
    """The entries of tensors that came from a pickle."""
    return {
        name: Entry(file=file, dtype=value.dtype, shape=value.shape, begin=0, end=value.nbytes)
        for name, value in tensors.items()
    }


def refuse_pickle(file: Path) -> NoReturn:
    """Raises ConvertError, with what may be done about a pickle."""
    raise ConvertError(
        f"{file}: a pickle can run code when it is opened; convert it to safetensors on a"
        " machine that you trust with it, or give --allow-pickle"
    )


def is_hub_name(path: str) -> bool:
    """Whether a path that is not a folder can be the name of a hub repository."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
      ConvertError: the file does not hold one.
    """
    return read.read_json(path, ConvertError)


def read_config_file(folder: Path) -> dict[str, Any]:
    """The configuration of a folder with its values checked; {} if it has none.

    Raises:
      ConvertError: a file that is no JSON object, or has a number that no model has.
    """
    for file in (folder / name for name in CONFIGS):
        if file.is_file():
            config = read_json(file)
            check_values(config, file)
            return config
    return {}


def _weight_files(folder: Path, index: str, suffixes: Sequence[str]) -> list[Path]:
    """The files with weights in a folder: those of the index, or the only one of that kind."""
    if (folder / index).is_file():
        named = sorted(set(_weight_map(folder / index).values()))
        for name in named:
            if Path(name).name != name or len(name) > 255 or not name.isprintable():
                raise ConvertError(
                    f"{folder / index}: names '{shown(name)}', which is not a file beside it"
                )
            if not (folder / name).is_file():
                raise ConvertError(
                    f"{folder / name}: missing, though {index} names it; download it"
                )
        return [folder / name for name in named]
    standard = SAFE_FILE if ".safetensors" in suffixes else PICKLE_FILE
    if (folder / standard).is_file():
        return [folder / standard]
    found = sorted(file for suffix in suffixes for file in folder.glob(f"*{suffix}"))
    if len(found) > 1:
        raise ConvertError(
            f"{folder}: holds {len(found)} files of weights, but no {index} that says which belong"
            " together"
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor according to an index."""
    weights = read_json(index).get("weight_map")
    sound = isinstance(weights, dict) and all(
        isinstance(file, str) and (name + file).isprintable() for name, file in weights.items()
    )
    if not sound or not weights:
        raise ConvertError(f"{index}: has no weight_map from tensors to files; download it again")
    return weights


def _check_index(index: Path, found: Mapping[Path, Mapping[str, Entry]]) -> dict[str, Entry]:
    """The tensors of all files, which must be exactly those of the index, if there is one."""
    if index.is_file():
        wanted = {(file, name) for name, file in _weight_map(index).items()}
        there = {(file.name, name) for file, entries in found.items() for name in entries}
        wrong = [f"{file} lacks {name}" for file, name in sorted(wanted - there)]
        wrong += [
            f"{file} holds {name}, which the index does not place there"
            for file, name in sorted(there - wanted)
        ]
        if wrong:
            more = f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""
            listed = "; ".join(wrong[:20]) + more
            raise ConvertError(f"{index}: {listed}; download index and files again")
    return {name: entry for entries in found.values() for name, entry in entries.items()}


def _download(name: str, *, allow_pickle: bool) -> Path:
    """The local folder of a hub repository."""
    if not is_hub_name(name):
        raise ConvertError(f"{name}: no such folder, nor a hub name such as Qwen/Qwen2-1.5B")
    patterns = [*HUB_FILES, *(f"*{suffix}" for suffix in PICKLE_SUFFIXES if allow_pickle)]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise ConvertError(
            f"{name}: no such folder, and the hub could not provide it ({first_line(error)});"
            " download it on a machine with a network"
        ) from error
