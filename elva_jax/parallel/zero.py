"""How much of a training step is sharded over the mesh axis `fsdp` (ZeRO, arXiv 1910.02054).

Between steps parameters and optimiser always lie sharded, in float32, so that a checkpoint never depends on the level; gradients and
their sum over micro-batches are sharded too, each as its parameter. The levels differ in what the forward and the backward pass read:

3  shards, gathered layer by layer, in each pass of each micro-batch: least memory.
2  a whole copy, gathered once a step, in the compute type where the model computes with it: fewest bytes on the wire.

Both compute the same numbers, apart from the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

LEVELS = (2, 3)
AXIS = "fsdp"


class Zero(NamedTuple):
    """Two functions of trees shaped like the parameters."""

    use: Callable[[Any], Any]  # parameters as stored -> as the forward and backward pass read them
    keep: Callable[
        [Any], Any
    ]  # gradients, or their sum -> float32, each where its parameter is stored


def make_zero(level: int, shardings: Any, dtype: str) -> Zero:
    """The placement of a training step.

    Args:
      level: one of LEVELS.
      shardings: tree of NamedSharding, where parameters are stored.
      dtype: compute type; `nn.Dense` casts its kernel to it at every use, so that a whole copy need be no wider.
    """

    def copy(path, leaf, stored):
        whole = _whole(stored)
        if whole == stored:
            return leaf
        dense = bool(path) and path[-1].key == "kernel"
        return jax.lax.with_sharding_constraint(leaf.astype(dtype) if dense else leaf, whole)

    def use(params):
        return params if level == 3 else jax.tree_util.tree_map_with_path(copy, params, shardings)

    def keep(grads):  # pinned before the cast: devices exchange their shares in the compute type
        return jax.tree.map(
            lambda leaf, stored: _pin(leaf, stored).astype(jnp.float32), grads, shardings
        )

    return Zero(use, keep)


def _pin(leaf: jax.Array, where: NamedSharding) -> jax.Array:
    return leaf if where.mesh.size == 1 else jax.lax.with_sharding_constraint(leaf, where)


def _whole(where: NamedSharding) -> NamedSharding:
    """The same without the axis of ZeRO."""

    def kept(axes):
        names = (axes,) if isinstance(axes, str) else axes or ()
        left = tuple(name for name in names if name != AXIS)
        return left[0] if len(left) == 1 else left or None

    return NamedSharding(where.mesh, PartitionSpec(*(kept(axes) for axes in where.spec)))
