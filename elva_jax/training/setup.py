"""A stage before its first step: optimizer, shapes, shardings, and fresh arrays for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from elva_jax.checkpoints.state import TrainState, create
from elva_jax.parallel.sharding import (
    activation_rules,
    logical_axes,
    parameter_shardings,
    state_shardings,
)
from elva_jax.training.optimizer import Optimizer, keep_frozen, make_optimizer
from elva_jax.training.task import Task
from elva_jax.utils.seeds import stage_seed
from elva_jax.utils.trees import flatten_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """All that the shapes of a stage determine before any array exists."""

    task: Task
    mesh: Mesh
    steps: int  # optimizer steps of the whole stage
    rules: tuple[tuple[str, Any], ...]  # logical axes of activations
    optimizer: Optimizer
    shapes: TrainState  # of ShapeDtypeStruct with shardings

    @property
    def shardings(self) -> TrainState:
        """The sharding of each leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)


def set_up(task: Task, mesh: Mesh, steps: int) -> TrainSetup:
    """Determines shapes, shardings and the optimizer of a stage."""
    settings, sizes = task.stage.optimizer, task.logical_sizes
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    params = nn.meta.unbox(boxed)
    optimizer = make_optimizer(
        settings, steps, params, logical_axes(boxed), task.is_adapter, task.is_outside
    )
    params = keep_frozen(params, optimizer, settings.frozen_dtype)
    shapes = jax.eval_shape(lambda params: create(params, optimizer.transform), params)
    shardings = state_shardings(shapes, parameter_shardings(boxed, mesh, sizes), mesh)
    return TrainSetup(
        task=task,
        mesh=mesh,
        steps=steps,
        rules=activation_rules(boxed, mesh, sizes),
        optimizer=optimizer,
        shapes=jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            shapes,
            shardings,
        ),
    )


def fresh_state(setup: TrainSetup, weights: Mapping[str, Any]) -> TrainState:
    """The state at step 0: parameters from `weights`, by '/'-joined path, or else random ones."""
    task, shardings = setup.task, setup.shardings
    wanted = flatten_paths(shardings.params)
    dtypes = {path: leaf.dtype for path, leaf in flatten_paths(setup.shapes.params).items()}
    missing = {path: where for path, where in wanted.items() if path not in weights}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        # Parameters that are not returned are neither computed nor compiled.
        leaves = flatten_paths(nn.meta.unbox(task.init(key)))
        return {path: leaves[path].astype(dtypes[path]) for path in missing}

    key = jax.random.key(stage_seed(task.config.seed, task.name, "init"))
    random = jax.jit(init, out_shardings=missing)(key) if missing else {}
    leaves = [random[path] if path in random else weights[path] for path in wanted]
    params = jax.tree.unflatten(jax.tree.structure(shardings.params), leaves)
    start = jax.jit(
        lambda params: create(params, setup.optimizer.transform),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return start(params)
