"""A short name of a model's weights, so that scores and caches tell which weights they are of."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from elva_jax.checkpoints.source import ParamSource
from elva_jax.inference.load_weights import ELVA, stacked_path
from elva_jax.parallel.host_arrays import replicate, to_host
from elva_jax.parallel.lockstep import ALONE, Lockstep
from elva_jax.utils.trees import flatten_paths

HASH_DIGITS = 16


def weights_hash(params: Any) -> str:
    """The first digits of the SHA-256 of parameters: their names, shapes, types and values.

    A saved step and the folder exported from it in float32 have the same hash, because what the
    training keeps beside the model (guidance heads) is left out.

    Args:
      params: parameters of `models.elva.Elva`, or the tree of a stage that holds them as "elva",
        such as `Run.params`.

    Returns:
      16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_paths(params.get("elva", params)).items()):
        values = np.ascontiguousarray(to_host(leaf))
        digest.update(_header(name, values.dtype, values.shape))
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:HASH_DIGITS]


class HashedWeights:
    """Hashes weights in float32 while they are read, as `weights_hash` hashes those of a `Run`.

    `load_source` calls it with every tensor.

    On a mesh of several processes the first one hashes, and devices hold a tensor whole meanwhile.

    Args:
      source: where the weights come from.
      lockstep: the processes of the mesh.
    """

    def __init__(self, source: ParamSource, lockstep: Lockstep = ALONE):
        self._shapes, self._lockstep = source.shapes, lockstep
        self._digest = hashlib.sha256()

    def __call__(self, path: str, array: jax.Array) -> None:
        """Adds a tensor."""
        name, layer = stacked_path(path)
        (whole,) = replicate([array])
        if not self._lockstep.first:
            return
        values = np.ascontiguousarray(np.asarray(whole), np.float32)
        if not layer:
            shape = self._shapes[f"{ELVA}{name}"].shape
            self._digest.update(_header(name, values.dtype, shape))
        self._digest.update(values.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """The hash, when all weights have been read."""
        return self._lockstep.from_first(lambda: self._digest.hexdigest()[:HASH_DIGITS])


def _header(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    return f"{name} {dtype} {shape}\n".encode()
