"""A short name of a model's weights, so that scores and caches tell which weights they are of."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

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
        values = np.ascontiguousarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:HASH_DIGITS]
