"""How much of a training step is sharded over the mesh axis `fsdp` (ZeRO, arXiv 1910.02054).

Between steps, parameters and optimizer state are always sharded, in float32, so a checkpoint never
depends on the level. Gradients and their sum over micro-batches are sharded like their parameters.
The levels differ in what the forward and backward passes read:

    level 3   shards ──all-gather──> one layer ──> forward      per layer, pass and micro-batch:
                                                                least memory
    level 2   shards ──all-gather──> whole copy ──> all layers  once per step, dense kernels in the
                                                                compute type: least traffic
    both      gradients ──reduce-scatter──> shards, float32

Both compute the same numbers, apart from the order of summation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

AXIS = "fsdp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zero:
    """Two functions of trees with the structure of the parameters."""

    gather_params: Callable[[Any], Any]  # stored parameters -> those that both passes read
    shard_grads: Callable[[Any], Any]  # gradients or their sum -> float32, sharded as stored


def make_zero(level: int, shardings: Any, dtype: str) -> Zero:
    """Builds the functions of a level.

    Args:
      level: 2 or 3.
      shardings: a tree of NamedSharding, how parameters are stored.
      dtype: the compute type. `nn.Dense` casts its kernel to it at every use, so a whole copy need
        not be wider.
    """

    def gather(path: tuple[Any, ...], leaf: jax.Array, stored: NamedSharding) -> jax.Array:
        whole = _without_fsdp(stored)
        if whole == stored:
            return leaf
        dense = bool(path) and path[-1].key == "kernel"
        return jax.lax.with_sharding_constraint(leaf.astype(dtype) if dense else leaf, whole)

    def gather_params(params: Any) -> Any:
        if level == 3:
            return params  # XLA gathers each layer where the scan over layers reads it
        return jax.tree_util.tree_map_with_path(gather, params, shardings)

    def shard_grads(grads: Any) -> Any:
        # Constrained before the cast, so that devices exchange gradients in the compute type.
        return jax.tree.map(
            lambda leaf, stored: _constrain(leaf, stored).astype(jnp.float32), grads, shardings
        )

    return Zero(gather_params=gather_params, shard_grads=shard_grads)


def _constrain(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if sharding.mesh.size == 1:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, sharding)


def _without_fsdp(sharding: NamedSharding) -> NamedSharding:
    def kept(axes: Any) -> Any:
        names = (axes,) if isinstance(axes, str) else axes or ()
        left = tuple(name for name in names if name != AXIS)
        return left[0] if len(left) == 1 else left or None

    return NamedSharding(sharding.mesh, PartitionSpec(*(kept(axes) for axes in sharding.spec)))
