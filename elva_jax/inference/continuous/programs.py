"""The compiled programs of an engine, with every array at the same place between them.

A program is compiled once for arrays that JAX may move and once for those that it may not, and on a
mesh once for every way in which its arguments are split. Here all arrays are put where they belong
as they are made, so that there is one way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Bool, Int

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.inference.continuous import pool, slots
from elva_jax.inference.continuous.grid import Class
from elva_jax.inference.continuous.pool import Layers
from elva_jax.inference.continuous.slots import Fed, Questions, Slots, Static, Where
from elva_jax.inference.params import Weights
from elva_jax.inference.sampling import RowSampling
from elva_jax.parallel.mesh import replicated

Tree = TypeVar("Tree")


class Programs:
    """The compiled programs of an engine; the methods are those of `slots` and `pool`.

    Args:
      static: the model.
      weights: its parameters.
      mesh: the devices; None: the one that holds the weights.

    Raises:
      ConfigError: the mesh has devices of several processes.
    """

    def __init__(self, static: Static, weights: Weights, mesh: Mesh | None) -> None:
        if mesh is not None and mesh.is_multi_process:
            raise ConfigError(
                "mesh: has devices of several processes, and requests come to one; load the model"
                " with a mesh of jax.local_devices()"
            )
        self.static = static
        self._weights = weights
        self._mesh = mesh
        if mesh is None:
            (device,) = jax.tree.leaves(weights)[0].devices()
            self._whole: Sharding = SingleDeviceSharding(device)
            self._by_head: Sharding = self._whole
        else:
            self._whole = replicated(mesh)
            tensor = mesh.shape["tensor"]
            splits = tensor > 1 and static.config.num_kv_heads % tensor == 0
            spec = PartitionSpec(None, "tensor")
            self._by_head = NamedSharding(mesh, spec) if splits else self._whole

    @property
    def config(self) -> ModelConfig:
        """The model, without merging layers."""
        return self.static.config

    def place(self, tree: Tree) -> Tree:
        """The arrays where they belong: caches split by heads, the others whole."""
        homes = jax.tree.map(lambda x: self._by_head if x.ndim == 4 else self._whole, tree)
        return jax.device_put(tree, homes)

    def _kept(self, tree: Tree) -> Tree:
        # What a program makes of placed arrays stays on a single device, but not on a mesh.
        return tree if self._mesh is None else self.place(tree)

    def empty_slots(self, count: int, capacity: int) -> Slots:
        """See `slots.empty_slots`."""
        return self.place(slots.empty_slots(self.static, count, capacity))

    def empty_pool(self, rows: int, lengths: Class) -> Layers:
        """See `pool.empty_pool`."""
        return self.place(pool.empty_pool(self.config, rows, lengths))

    def insert(self, layers: Layers, prefix: Layers, row: int) -> Layers:
        """See `pool.insert`."""
        return self._kept(pool.insert(layers, prefix, np.int32(row)))

    def stack(self, prefixes: Sequence[Layers]) -> Layers:
        """See `pool.stack`."""
        return self._kept(pool.stack(tuple(prefixes)))

    def take_row(self, layers: Layers, row: int) -> Layers:
        """See `pool.take_row`."""
        return self._kept(pool.take_row(layers, np.int32(row)))

    def pad(self, layers: Layers, lengths: Class) -> Layers:
        """Prefixes in the lengths of a class."""
        return self._kept(
            tuple(
                layer if layer.valid.shape[1] == length else pool.pad_layer(layer, length)
                for layer, length in zip(self.place(layers), lengths, strict=True)
            )
        )

    def feed(
        self,
        prefix: Layers,
        questions: Questions,
        sampling: RowSampling,
        repetition_mask: Bool[np.ndarray, "R V"],
    ) -> Fed:
        """See `slots.feed`."""
        return self._kept(
            slots.feed(self.static, self._weights, prefix, questions, sampling, repetition_mask)
        )

    def put(self, running: Slots, fed: Fed, index: Int[np.ndarray, " N"]) -> Slots:
        """See `slots.put`."""
        return self._kept(slots.put(running, fed, index))

    def release(self, running: Slots, kept: Bool[np.ndarray, " R"]) -> Slots:
        """See `slots.release`."""
        return self._kept(slots.release(running, kept))

    def rearrange(self, running: Slots, source: Int[np.ndarray, " R2"], capacity: int) -> Slots:
        """See `slots.rearrange`."""
        return self._kept(slots.rearrange(running, source, capacity))

    def advance(
        self, layers: Layers, running: Slots, where: Where, steps: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, Slots]:
        """See `slots.advance`."""
        tokens, alive, ended, running = slots.advance(
            self.static, self._weights, layers, running, where, np.int32(steps)
        )
        return tokens, alive, ended, self._kept(running)
