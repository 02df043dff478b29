"""The headers of safetensors files, and checks of their values.

A file (https://github.com/huggingface/safetensors) has three parts:

    8 bytes   length of the header, little-endian
    header    JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {}}
    data      all tensors without gaps; offsets count from here

The library would copy every tensor that it reads, and its errors name neither the tensor nor the
bytes of a damaged file, so reading is our own; writing is the library's (`write_store`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from elva_jax.errors import ConvertError, first_line
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import open_regular, parse_json

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
LARGEST_HEADER = 100 * 2**20  # bytes; the limit of the format
BLOCK = 2**20  # bytes that are checked at a time; temporary arrays of them stay in the cache


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The place of a tensor in a file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return self.end - self.begin


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file.

    Raises:
      ConvertError: a truncated or malformed file, an unknown dtype, or byte ranges that overlap,
        leave gaps, or do not fit dtype and shape.
    """
    size = file.stat().st_size
    with open_regular(file, ConvertError) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ConvertError(
                f"{file}: not a complete safetensors file ({size} bytes, header of {length});"
                " download it again"
            )
        rows = _parse_header(file, opened, length)
    entries, start, reached = {}, 8 + length, 0
    for name, kind, shape, begin, end in sorted(rows, key=lambda row: row[3:]):
        if kind not in DTYPES:
            known = ", ".join(DTYPES)
            raise ConvertError(
                f"{file}: {name} has dtype {shown(kind)}; convert it to one of {known}"
            )
        need = int(np.prod(shape, dtype=object)) * DTYPES[kind].itemsize
        problem = None
        if end - begin != need:
            problem = f"takes {end - begin} bytes, but {kind}{list(shape)} needs {need}"
        elif begin != reached:
            problem = (
                "overlaps the tensor before it" if begin < reached else "leaves a gap before it"
            )
            problem += f" (byte {begin}, expected {reached})"
        if problem:
            raise ConvertError(f"{file}: {name} {problem}; download the file again")
        if start + end > size:
            raise ConvertError(
                f"{file}: truncated, {name} ends at byte {start + end} of {size}; download the file"
                " again"
            )
        entries[name] = Entry(
            file=file, dtype=DTYPES[kind], shape=shape, begin=start + begin, end=start + end
        )
        reached = end
    if start + reached != size:
        raise ConvertError(
            f"{file}: {size - start - reached} bytes after the last tensor belong to none; download"
            " the file again"
        )
    return entries


def _parse_header(
    file: Path, opened: IO[bytes], length: int
) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, begin and end of each tensor."""
    try:
        header: dict[str, Any] = parse_json(opened.read(length))
        metadata = header.pop("__metadata__", {})
        rows = []
        for name, value in header.items():
            begin, end = value["data_offsets"]
            rows.append((name, value["dtype"], tuple(value["shape"]), begin, end))
        sound = isinstance(metadata, dict) and all(
            name.isprintable()
            and isinstance(kind, str)
            and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *at))
            for name, kind, shape, *at in rows
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConvertError(
            f"{file}: its safetensors header is malformed ({type(error).__name__}:"
            f" {first_line(error)});"
            " download it again"
        ) from error
    if not sound:
        raise ConvertError(f"{file}: its safetensors header is malformed; download it again")
    return rows


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, checked in small blocks; integers always are finite."""
    if values.dtype.kind not in "fV":  # NumPy counts bfloat16 as V
        return True
    if values.dtype == ml_dtypes.bfloat16 and values.flags.c_contiguous:
        # A number is finite if its exponent has a zero bit; integers are compared much faster.
        bits = values.reshape(-1).view(np.uint16)
        blocks = (bits[i : i + BLOCK // 2] for i in range(0, bits.size, BLOCK // 2))
        return all(int((block & np.uint16(0x7FFF)).max()) < 0x7F80 for block in blocks)
    if values.nbytes <= BLOCK or values.ndim == 0:
        return bool(np.isfinite(values).all())
    rows = max(BLOCK * len(values) // values.nbytes, 1)
    if rows == 1:
        return all(all_finite(row) for row in values)
    return all(bool(np.isfinite(values[i : i + rows]).all()) for i in range(0, len(values), rows))
