"""A Hugging Face folder of weights: read tensor by tensor from memory maps, written shard by shard.

The safetensors format (https://github.com/huggingface/safetensors): eight bytes with the header's length, little-endian; the header, JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}} with offsets counted behind it; then the data, without gaps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from elva_jax.errors import ConvertError
from elva_jax.utils.files import sha256

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CHECKSUMS = "checksums.json"  # {file: sha256 of its bytes}
SAFE_INDEX, SAFE_FILE = "model.safetensors.index.json", "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
CONFIGS = ("config.json", "open_clip_config.json")
HUB_FILES = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
)  # weights, configuration, tokenizer
LARGEST_HEADER = 100 * 2**20  # bytes; the format's own limit
BLOCK = 16 * 2**20  # bytes that are copied, hashed or checked at once


class Entry(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


class Store:
    """The tensors of a folder, by their names on disk; nothing is loaded before it is asked for. Made by `open_store`."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        entries: Mapping[str, Entry],
        tensors: Mapping[str, np.ndarray] | None = None,
    ):
        self.path = path
        self.config = config  # of config.json; {} where there is none
        self._entries = dict(entries)
        self._tensors = tensors  # what a pickle held; otherwise the files are mapped
        self._maps: dict[Path, mmap.mmap] = {}

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        return self._entry(name).dtype

    def where(self, name: str) -> str:
        """File and name of a tensor, for messages."""
        return f"{self._entry(name).file}: {name}"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def read(self, name: str) -> np.ndarray:
        """A read-only view of a tensor's bytes on disk.

        Raises:
          ConvertError: there is no such tensor.
        """
        entry = self._entry(name)
        if self._tensors is not None:
            return self._tensors[name]
        if entry.begin == entry.end:
            return np.zeros(entry.shape, entry.dtype)
        count = (entry.end - entry.begin) // entry.dtype.itemsize
        return np.frombuffer(self._map(entry.file), entry.dtype, count, entry.begin).reshape(
            entry.shape
        )

    def release(self, name: str) -> None:
        """Lets the system take back the memory of a tensor that has been read; reading it again is allowed."""
        entry = self._entry(name)
        if entry.file in self._maps and entry.end > entry.begin:
            first = entry.begin - entry.begin % mmap.PAGESIZE
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, first, entry.end - first)

    def refuse_non_finite(self, name: str, values: np.ndarray) -> None:
        """Checks a piece of a tensor.

        Raises:
          ConvertError: it holds NaN or infinity.
        """
        if not all_finite(values):
            raise ConvertError(
                f"{self.where(name)} holds values that are not finite; the file is damaged, or the training diverged"
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


def open_store(path: str | Path, *, allow_pickle: bool = False) -> Store:
    """Opens a folder in Hugging Face's layout, or fetches one from the hub: one safetensors file, or several with an index.

    Files are compared with checksums.json where the folder has one, and with the names that the hub's cache gives them, which are sha256.

    Args:
      path: a folder, or a hub name such as Qwen/Qwen2-1.5B.
      allow_pickle: whether .bin, .pt and .pth files may be read, with torch.load(weights_only=True), where there is no safetensors file.

    Raises:
      ConvertError: nothing there, a pickle without allow_pickle, or files that are damaged or contradict each other.
    """
    folder = Path(path) if Path(path).is_dir() else _fetch(str(path), allow_pickle)
    config = next((read_json(folder / name) for name in CONFIGS if (folder / name).is_file()), {})
    if files := _files(folder, SAFE_INDEX, (".safetensors",)):
        _check_bytes(folder, files)
        entries = _collect(folder / SAFE_INDEX, {file: read_header(file) for file in files})
        return Store(folder, config, entries)
    files = _files(folder, "pytorch_model.bin.index.json", PICKLE_SUFFIXES)
    if not files:
        raise ConvertError(
            f"{folder}: no model.safetensors, nor {SAFE_INDEX}; give a folder in Hugging Face's layout"
        )
    if not allow_pickle:
        raise ConvertError(
            f"{files[0]}: a pickle can run code when it is opened; convert it to safetensors where you trust it, or give --allow-pickle"
        )
    _check_bytes(folder, files)
    loaded = {file: _unpickle(file) for file in files}
    entries = {
        file: {
            name: Entry(file, value.dtype, value.shape, 0, value.nbytes)
            for name, value in tensors.items()
        }
        for file, tensors in loaded.items()
    }
    tensors = {name: value for held in loaded.values() for name, value in held.items()}
    return Store(
        folder, config, _collect(folder / "pytorch_model.bin.index.json", entries), tensors
    )


def is_hub_name(path: str) -> bool:
    """Whether something that is no folder can be the name of a repository on the hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ConvertError: it is none.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConvertError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, in little memory; whatever is not a float is finite."""
    if values.dtype.kind not in "fV":  # NumPy sees bfloat16 as V
        return True
    if values.dtype == ml_dtypes.bfloat16 and values.flags.c_contiguous:
        # Finite is what has a zero among its exponent's bits; on integers this is several times as fast.
        bits = values.reshape(-1).view(np.uint16)
        pieces = (bits[i : i + BLOCK // 2] for i in range(0, bits.size, BLOCK // 2))
        return all(int((piece & np.uint16(0x7FFF)).max()) < 0x7F80 for piece in pieces)
    if values.nbytes <= BLOCK or values.ndim == 0:
        return bool(np.isfinite(values).all())
    rows = max(BLOCK * len(values) // values.nbytes, 1)
    if rows == 1:
        return all(all_finite(row) for row in values)
    return all(bool(np.isfinite(values[i : i + rows]).all()) for i in range(0, len(values), rows))


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file.

    Raises:
      ConvertError: truncated or malformed, a dtype that is not known, ranges that overlap, leave gaps or do not fit dtype and shape.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ConvertError(
                f"{file}: not a whole safetensors file ({size} bytes, header of {length}); fetch it again"
            )
        try:
            header = json.loads(opened.read(length))
            metadata = header.pop("__metadata__", {})
            rows = [
                (name, value["dtype"], tuple(value["shape"]), *value["data_offsets"])
                for name, value in header.items()
            ]
            sound = isinstance(metadata, dict) and all(
                type(n) is int and n >= 0 for _, _, shape, *at in rows for n in (*shape, *at)
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConvertError(
                f"{file}: its safetensors header is malformed ({type(error).__name__}: {error}); fetch it again"
            ) from error
    if not sound:
        raise ConvertError(f"{file}: its safetensors header is malformed; fetch it again")
    entries, reached = {}, 0
    for name, kind, shape, begin, end in sorted(rows, key=lambda row: row[3:]):
        if kind not in DTYPES:
            raise ConvertError(
                f"{file}: {name} has dtype {kind}; convert it to one of {', '.join(DTYPES)}"
            )
        need = int(np.prod(shape, dtype=object)) * DTYPES[kind].itemsize
        if end - begin != need:
            raise ConvertError(
                f"{file}: {name} takes {end - begin} bytes, but {kind}{list(shape)} needs {need}; fetch the file again"
            )
        if begin != reached:
            problem = (
                "overlaps the tensor before it" if begin < reached else "leaves a gap before it"
            )
            raise ConvertError(
                f"{file}: {name} {problem} (byte {begin}, expected {reached}); fetch the file again"
            )
        entries[name] = Entry(file, DTYPES[kind], shape, 8 + length + begin, 8 + length + end)
        reached = end
        if 8 + length + end > size:
            raise ConvertError(
                f"{file}: truncated, {name} ends at byte {8 + length + end} of {size}; fetch the file again"
            )
    if 8 + length + reached != size:
        raise ConvertError(
            f"{file}: {size - 8 - length - reached} bytes behind the last tensor belong to none; fetch the file again"
        )
    return entries


def _files(folder: Path, index: str, suffixes: Sequence[str]) -> list[Path]:
    """The files with weights that a folder means: those of the index, or the only one of that kind."""
    if (folder / index).is_file():
        named = sorted(set(_weight_map(folder / index).values()))
        for name in named:
            if Path(name).name != name:
                raise ConvertError(f"{folder / index}: names {name}, which is not a file beside it")
            if not (folder / name).is_file():
                raise ConvertError(f"{folder / name}: missing, though {index} names it; fetch it")
        return [folder / name for name in named]
    standard = [
        folder / name
        for name in (SAFE_FILE, "pytorch_model.bin")
        if Path(name).suffix in suffixes and (folder / name).is_file()
    ]
    found = standard or sorted(file for suffix in suffixes for file in folder.glob(f"*{suffix}"))
    if len(found) > 1:
        raise ConvertError(
            f"{folder}: holds {len(found)} files of weights, but no {index} that says which belong together"
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    weights = read_json(index).get("weight_map")
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(file, str) for file in weights.values())
    ):
        raise ConvertError(f"{index}: has no weight_map from tensors to files; fetch it again")
    return weights


def _collect(index: Path, found: Mapping[Path, Mapping[str, Entry]]) -> dict[str, Entry]:
    """The tensors of all files; with an index, exactly those that it names, each in its file."""
    if not index.is_file():
        return {name: entry for entries in found.values() for name, entry in entries.items()}
    wanted = {(file, name) for name, file in _weight_map(index).items()}
    there = {(file.name, name) for file, entries in found.items() for name in entries}
    wrong = [f"{file} lacks {name}" for file, name in sorted(wanted - there)]
    wrong += [
        f"{file} holds {name}, which the index does not place there"
        for file, name in sorted(there - wanted)
    ]
    if wrong:
        raise ConvertError(f"{index}: {shorten(wrong)}; fetch index and files again")
    return {name: entry for entries in found.values() for name, entry in entries.items()}


def shorten(problems: Sequence[str], shown: int = 20) -> str:
    """Several problems in one line."""
    return "; ".join(problems[:shown]) + (
        f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    )


def _check_bytes(folder: Path, files: Sequence[Path]) -> None:
    sums = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}
    for file in files:
        blob = file.resolve().name
        expected = sums.get(file.name) or (
            blob if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob) else None
        )
        if expected and (actual := sha256(file)) != expected:
            raise ConvertError(
                f"{file}: damaged, its sha256 is {actual[:12]}…, expected {str(expected)[:12]}…; fetch or export it again"
            )


def _fetch(name: str, allow_pickle: bool) -> Path:
    if not is_hub_name(name):
        raise ConvertError(f"{name}: no such folder, nor a hub name such as Qwen/Qwen2-1.5B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [*HUB_FILES, *(f"*{suffix}" for suffix in PICKLE_SUFFIXES if allow_pickle)]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ConvertError(
            f"{name}: no such folder, and the hub could not give it ({reason}); fetch it on a machine with a network"
        ) from error


def _unpickle(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file, without running anything in it."""
    import pickle
    import zipfile

    import torch

    try:
        held = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ConvertError(f"{file}: holds more than tensors, or is damaged ({reason})") from error
    for key in ("state_dict", "model", "module"):
        held = held[key] if isinstance(held, dict) and isinstance(held.get(key), dict) else held
    if not isinstance(held, dict) or not all(
        isinstance(value, torch.Tensor) for value in held.values()
    ):
        raise ConvertError(f"{file}: is not a dictionary of tensors; save a model's state_dict()")

    def to_numpy(tensor: torch.Tensor) -> np.ndarray:
        tensor = tensor.detach().contiguous()
        return (
            tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if tensor.dtype == torch.bfloat16
            else tensor.numpy()
        )

    return {name: to_numpy(tensor) for name, tensor in held.items()}


def write_store(
    path: str | Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int = 5 * 10**9,
    files: Mapping[str, bytes | Path] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a folder in Hugging Face's layout, one tensor in memory at a time, with checksums.json beside the weights.

    Args:
      path: a folder that does not exist yet, or is empty.
      tensors: names and values, in the order in which they are to lie on disk.
      shard_bytes: most bytes of a file, where no single tensor takes more.
      files: what else the folder holds, by name: contents, or a file to copy.
      metadata: strings for the headers; transformers wants {"format": "pt"}, which is the default.

    Raises:
      ConvertError: there is something at the target; a name twice; a dtype that safetensors has not.
    """
    with whole_folder(Path(path)) as folder:
        sums = _write_weights(folder, tensors, shard_bytes, dict(metadata or {"format": "pt"}))
        for name, content in {
            **(files or {}),
            CHECKSUMS: json.dumps(sums, indent=2).encode() + b"\n",
        }.items():
            if isinstance(content, Path):
                shutil.copyfile(content, folder / name)
            else:
                (folder / name).write_bytes(content)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, `.<name>.tmp` beside the target, that gets the target's name at the end and goes where something fails.

    Raises:
      ConvertError: there is something at the target.
    """
    target = target.absolute()
    refuse_occupied(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_occupied(target: Path) -> None:
    """Raises ConvertError where something is at the target that is not an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConvertError(f"{target}: exists already; remove it, or choose another place")


class _Shard:
    """The tensors of one file to be: their bytes in a file without a header, because the header comes first and is known last."""

    def __init__(self, file: Path):
        self.file, self.header, self.size = file, {}, 0
        self._opened = file.open("wb")

    def add(self, name: str, value: np.ndarray, kind: str) -> None:
        self.header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [self.size, self.size + value.nbytes],
        }
        self.size += value.nbytes
        self._opened.write(memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8)))

    def close(self) -> None:
        self._opened.close()

    def finish(self, target: Path, metadata: dict[str, str]) -> str:
        """Writes the file with its header, removes the one without, and returns the sha256."""
        header = json.dumps(
            {"__metadata__": metadata, **self.header}, separators=(",", ":")
        ).encode()
        header += b" " * (-len(header) % 8)
        digest = hashlib.sha256()
        with self.file.open("rb") as source, target.open("wb") as sink:
            piece = len(header).to_bytes(8, "little") + header
            while piece:
                digest.update(piece)
                sink.write(piece)
                piece = source.read(BLOCK)
            sink.flush()
            os.fsync(sink.fileno())
        self.file.unlink()
        return digest.hexdigest()


def _write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int,
    metadata: dict[str, str],
) -> dict[str, str]:
    """Writes the shards and their index; returns the checksums by file."""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    shards: list[_Shard] = []
    placed: dict[str, int] = {}
    try:
        for name, value in tensors:
            if name in placed:
                raise ConvertError(f"{name}: given twice")
            if value.dtype not in kinds:
                raise ConvertError(
                    f"{name}: has dtype {value.dtype}, which safetensors cannot hold; cast it"
                )
            if not shards or (shards[-1].size and shards[-1].size + value.nbytes > shard_bytes):
                if shards:
                    shards[-1].close()
                shards.append(_Shard(folder / f"{len(shards)}.data"))
            shards[-1].add(name, value, kinds[value.dtype])
            placed[name] = len(shards) - 1
    finally:
        if shards:
            shards[-1].close()
    if not shards:
        raise ConvertError(f"{folder.name}: no tensors to write")
    count = len(shards)
    names = (
        [SAFE_FILE]
        if count == 1
        else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    sums = {
        name: shard.finish(folder / name, metadata)
        for name, shard in zip(names, shards, strict=True)
    }
    if count > 1:
        total = sum(shard.size for shard in shards)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: names[k] for name, k in sorted(placed.items())},
        }
        (folder / SAFE_INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return sums
