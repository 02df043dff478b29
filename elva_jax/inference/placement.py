"""The devices of an engine, and how the arrays of a batch are split over them.

    rows [B, ...]                  data x fsdp
    caches [B, K, ...]             data x fsdp, and key-value heads over tensor
    weights                        fsdp x tensor, as in training

A batch of one row is not split: every group of `tensor` devices computes it. A larger one is filled
up with copies of its last row until it splits evenly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.batching import Rows
from elva_jax.inference.params import mesh_rules
from elva_jax.parallel.host_arrays import from_host
from elva_jax.parallel.lockstep import digest, lockstep_of
from elva_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated, with_all_axes
from elva_jax.parallel.sharding import on_mesh

_LOG = logging.getLogger(__name__)


class Placement:
    """Where an engine computes.

    Args:
      config: the model.
      mesh: its devices; None: the first device alone.

    Attributes:
      lockstep: the processes that have these devices.

    Raises:
      ConfigError: the mesh has an axis of another name.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh | None = None) -> None:
        self.mesh = None if mesh is None or mesh.size == 1 else with_all_axes(mesh)
        self.lockstep = lockstep_of(self.mesh)
        if self.mesh is None:
            return
        self._parts = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
        # Merging and decoding need whole sequences.
        rules = {**dict(mesh_rules(config, self.mesh)), "seq": None}
        self._rules = {
            split: tuple((rules if split else {**rules, "batch": None}).items())
            for split in (False, True)
        }
        tensor = self.mesh.shape["tensor"]
        if config.num_kv_heads % tensor:
            _LOG.info(
                "mesh: tensor = %d does not divide the %d key-value heads, so every device of the"
                " axis holds whole caches; the weights are split",
                tensor,
                config.num_kv_heads,
            )

    def on(self, rows: int) -> contextlib.AbstractContextManager[None]:
        """Within it, programs about a batch of `rows` rows are traced for the mesh."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return on_mesh(self.mesh, self._rules[self._splits(rows)])

    def place(self, rows: Rows) -> Rows:
        """The batch on its devices, filled up where that is needed."""
        if self.mesh is None:
            return rows
        rows = self.fill(rows)
        return dataclasses.replace(
            rows, patches=self.put(rows.patches), layout=self.put(rows.layout)
        )

    def check(self, what: str, *values: Any) -> None:
        """Compares what is asked in all processes of the mesh: arrays on the host, and others.

        Raises:
          ConfigError: they differ.
          StartError: another process has ended, or asks nothing.
        """
        if not self.lockstep.alone:
            self.lockstep.agree(what, digest(what, *values))

    def fill(self, rows: Rows) -> Rows:
        """The batch on the host, filled up where its rows would not split evenly."""
        batch = len(rows.length)
        more = 0 if self.mesh is None or batch == 1 else -batch % self._parts
        if not more:
            return rows

        def fill(leaf: np.ndarray) -> np.ndarray:
            return np.concatenate([leaf, np.repeat(leaf[-1:], more, axis=0)])

        return Rows(
            patches=fill(rows.patches),
            layout=jax.tree.map(fill, rows.layout),
            length=fill(rows.length),
            stretch=fill(rows.stretch),
        )

    def put(self, tree: Any) -> Any:
        """Arrays [B, ...] of a batch that `fill` returned, on its devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        rows = len(jax.tree.leaves(tree)[0])
        splits = self._splits(rows)
        return from_host(tree, batch_sharding(self.mesh) if splits else replicated(self.mesh))

    def _splits(self, rows: int) -> bool:
        return rows % self._parts == 0
