"""Arrays between the host and the devices of a mesh, whatever processes these belong to.

    host, in every process      from_host ─> each process puts what its devices hold
    host, in every process      <─ to_host   devices exchange what a process lacks

Within a mesh of one process both are plain copies. On a mesh of several processes every process
must call them in the same order, with the same values, as it must start the same programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from elva_jax.parallel.mesh import replicated


def from_host(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has, on devices.

    Args:
      tree: NumPy's arrays, or JAX's on devices of this process.
      shardings: a sharding for all of them, or a tree of shardings.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(leaf: Any, sharding: Sharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        # `jax.device_put` would compare the values of all processes, in an exchange per array.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """A tree of arrays as NumPy's, whole in every process; other leaves stay as they are."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, jax.device_get(replicate(leaves)))


def replicate(leaves: list[Any]) -> list[Any]:
    """The arrays, of which those that this process does not hold whole are whole on its devices."""
    lacking = [
        index
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array)
        and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    ]
    if not lacking:
        return leaves
    mesh = leaves[lacking[0]].sharding.mesh
    whole = _replicating(mesh)([leaves[index] for index in lacking])
    found = dict(zip(lacking, whole, strict=True))
    return [found.get(index, leaf) for index, leaf in enumerate(leaves)]


@functools.cache
def _replicating(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))
