"""The arrays of a saved step, any slice of which is read on its own.

Orbax stores each parameter as a zarr array in one key-value store:

    params/_METADATA                              JSON: the names, and which formats are used
    params/manifest.ocdbt, params/ocdbt.*/d/...   the store: elva.decoder.norm.scale/.zarray, .../0

TensorStore reads these directly. Orbax itself restores whole arrays only, which takes room for the
float32 stack of all layers, and a second to be imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from elva_jax.errors import CheckpointError
from elva_jax.utils.arrays import aligned_empty
from elva_jax.utils.read import read_json

Index = tuple[slice, ...]
NUMBERS = "fiubV"  # kinds of dtypes; NumPy counts bfloat16 as V
NODES = 100 * 2**20  # bytes of the store's tree that are kept, so that it is read once


class SavedArrays:
    """The parameters in one folder of a step.

    Args:
      folder: `params` of a saved step.

    Attributes:
      shapes: shape and dtype of each array, by '/'-joined path.

    Raises:
      CheckpointError: its list of names is damaged.
      OSError, ValueError, KeyError: TensorStore cannot open an array.
    """

    def __init__(self, folder: Path):
        metadata = read_json(folder / "_METADATA", CheckpointError)
        context = ts.Context({"cache_pool#nodes": {"total_bytes_limit": NODES}})
        opened = {
            "/".join(keys): ts.open(
                _spec(folder, ".".join(keys), metadata), context=context, open=True, read=True
            )
            for keys in _names(metadata)
        }
        self._arrays = {name: future.result() for name, future in opened.items()}
        for name, array in self._arrays.items():
            if array.dtype.numpy_dtype.kind not in NUMBERS:
                raise ValueError(f"{name} is an array of {array.dtype.name}")
        self.shapes = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
            for name, array in self._arrays.items()
        }

    def read(self, name: str, index: Index = (), dtype: Any = None) -> np.ndarray:
        """A slice of an array.

        Args:
          name: its path.
          index: a slice of each of the first axes; the others are whole.
          dtype: the type of the result; None: as saved.

        Raises:
          OSError, ValueError, KeyError: TensorStore cannot read it.
        """
        array = self._arrays[name]
        array = array[index] if index else array
        if dtype is not None and np.dtype(dtype) != array.dtype.numpy_dtype:
            array = ts.cast(array, ts.dtype(np.dtype(dtype)))
        out = aligned_empty(array.shape, array.dtype.numpy_dtype)
        ts.array(out).write(array).result()
        return out

    def rows_at_once(self, name: str) -> int:
        """How many rows of the first axis one chunk of the file holds; it is read as a whole."""
        chunk = self._arrays[name].chunk_layout.read_chunk.shape
        return (chunk and chunk[0]) or 1


def _names(metadata: Mapping[str, Any]) -> list[list[str]]:
    """The keys that lead to each array; empty subtrees have none.

    Raises:
      ValueError: the metadata is not Orbax's.
    """
    try:
        return [
            [str(part["key"]) for part in entry["key_metadata"]]
            for entry in metadata["tree_metadata"].values()
            if not entry["value_metadata"].get("skip_deserialize")
        ]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("its _METADATA does not list the parameters") from None


def _spec(folder: Path, name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Where an array is, in TensorStore's form."""
    files = {"driver": "file", "path": f"{folder}/"}
    store = {"driver": "ocdbt", "base": files, "path": f"{name}/", "cache_pool": "cache_pool#nodes"}
    if not metadata.get("use_ocdbt", True):
        store = {**files, "path": f"{folder}/{name}/"}
    return {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "kvstore": store}
