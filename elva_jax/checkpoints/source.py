"""Weights that are read tensor by tensor, from a saved step or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Sharding

from elva_jax.checkpoints.arrays import Index
from elva_jax.config.schema import Config


class ParamSource(Protocol):
    """A model whose parameters have not been read yet."""

    @property
    def config(self) -> Config:
        """The configuration of the whole run."""

    @property
    def stage(self) -> str:
        """The stage that the weights are of."""

    @property
    def tokenizer_dir(self) -> Path:
        """The folder of the tokenizer."""

    @property
    def step(self) -> int:
        """The training step of the weights."""

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shape and saved dtype of each parameter, by '/'-joined path."""

    def rows_at_once(self, name: str) -> int:
        """How many rows of a stacked parameter are best read together."""

    def rows(
        self, name: str, rows: range | None, index: Index, dtype: Any
    ) -> AbstractContextManager[Sequence[np.ndarray]]:
        """Reads some rows of a parameter; the arrays are valid within the context only.

        Args:
          name: its path.
          rows: the rows of its first axis, each an array of its own; None: all of it as one array.
          index: the part of each array that is wanted; (): all.
          dtype: the type of the arrays; None: the best that the source has.

        Raises:
          ElvaError: it is damaged.
        """


def needed(shape: tuple[int, ...], sharding: Sharding) -> Index:
    """The smallest slice of an array that holds all that the devices of this process need."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    bounds = [
        [part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True)]
        for index in indices
    ]
    return tuple(
        slice(min(start for start, _ in axis), max(stop for _, stop in axis))
        for axis in zip(*bounds, strict=True)
    )


def place(part: np.ndarray, shape: tuple[int, ...], index: Index, sharding: Sharding) -> jax.Array:
    """An array on its devices, of which `part` is the slice `index`; it is there on return."""
    origin = [at.start for at in index]

    def cut(wanted: Index | None) -> np.ndarray:
        at = (one.indices(size) for one, size in zip(wanted or (), shape, strict=True))
        return part[tuple(slice(a - o, b - o) for (a, b, _), o in zip(at, origin, strict=True))]

    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, cut))
