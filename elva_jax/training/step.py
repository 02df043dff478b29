"""One training step: gradients over micro-batches, one update, and no update where something is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from elva_jax.checkpoints.state import TrainState
from elva_jax.parallel.distributed import barrier
from elva_jax.parallel.sharding import on_mesh
from elva_jax.parallel.zero import Zero, make_zero
from elva_jax.tasks.objective import Objective
from elva_jax.training.metrics import is_summed
from elva_jax.training.optimizer import Optimizer, joined, trained

Metrics = dict[str, Any]  # scalars by name; `merge`: a MergeMetrics for each merging layer
LossFn = Callable[
    [Any, Any, Any], tuple[jax.Array, Metrics]
]  # (params, frozen trees, batch) -> (loss, metrics)


def value_and_grad(
    loss_fn: LossFn, params, frozen, batch, accumulate: int, zero: Zero | None = None
) -> tuple[jax.Array, Metrics, Any]:
    """Loss, metrics and gradient, averaged over `accumulate` micro-batches that a scan runs one after the other.

    Micro-batch i takes rows i, i + A, i + 2A, ... so that rows stay on the device that holds them. With `zero`, parameters are read as it
    says, and every gradient lies where its parameter is stored.
    """
    zero = zero or Zero(gather_params=lambda tree: tree, shard_grads=lambda tree: tree)
    value_of = jax.value_and_grad(loss_fn, has_aux=True)
    used = zero.gather_params(params)

    def gradient(rows):
        out, grads = value_of(used, frozen, rows)
        return out, zero.shard_grads(grads)

    if accumulate == 1:
        (loss, metrics), grads = gradient(batch)
        return loss, metrics, grads
    micro = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1),
        batch,
    )

    def add(total, rows):
        (loss, metrics), grads = gradient(rows)
        return zero.shard_grads(jax.tree.map(jnp.add, total, grads)), (loss, metrics)

    zeros = zero.shard_grads(jax.tree.map(jnp.zeros_like, params))
    total, (losses, metrics) = jax.lax.scan(add, zeros, micro)
    metrics = jax.tree_util.tree_map_with_path(
        lambda path, values: values.sum(0) if is_summed(path) else values.mean(0), metrics
    )
    return losses.mean(0), metrics, jax.tree.map(lambda g: g / accumulate, total)


def make_train_step(
    objective: Objective,
    optimizer: Optimizer,
    mesh: Mesh,
    rules,
    shardings,
    accumulate: int = 1,
    zero: int = 3,
    dtype: str = "float32",
) -> TrainStep:
    """`train_step(state, frozen, batch) -> (state, metrics)`, which donates the state.

    A loss or gradient norm that is not finite leaves parameters and optimiser as they were, and is counted in the state.

    Args:
      objective: the stage's; its metrics are scalars.
      optimizer: from `make_optimizer`.
      mesh: the device mesh.
      rules: activation rules of `parallel.sharding`.
      shardings: TrainState of NamedSharding, which the state keeps from step to step.
      accumulate: micro-batches a step.
      zero: level of `parallel.zero`.
      dtype: the model's compute type.
    """
    placement = make_zero(zero, trained(shardings.params, optimizer.labels), dtype)

    def train_step(state: TrainState, frozen, batch) -> tuple[TrainState, Metrics]:
        # Frozen parameters are constants: they cost no backward pass, no gradient, and do not count in its norm.
        moving = trained(state.params, optimizer.labels)

        def loss(moving, frozen, rows):
            return objective.loss(joined(moving, state.params), frozen, rows)

        if accumulate > 1:
            batch = objective.prepare(batch)
        value, metrics, grads = value_and_grad(loss, moving, frozen, batch, accumulate, placement)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, moving)
        new = (optax.apply_updates(moving, updates), opt_state)
        moving, opt_state = jax.tree.map(
            lambda a, b: jnp.where(good, a, b), new, (moving, state.opt_state)
        )
        bad = 1 - good.astype(jnp.int32)
        after = TrainState(
            step=state.step + 1,
            bad_steps=state.bad_steps + bad,
            bad_run=(state.bad_run + 1) * bad,
            params=joined(moving, state.params),
            opt_state=opt_state,
        )
        rate = optimizer.schedule(
            state.step - state.bad_steps
        )  # skipped steps do not advance the schedule
        counts = {"bad_steps": after.bad_steps, "bad_run": after.bad_run}
        return after, {
            "loss": value,
            **metrics,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(moving),
            "learning_rate": rate,
            **counts,
        }

    return TrainStep(
        jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)), mesh, rules
    )


class TrainStep:
    """A jitted `train_step(state, frozen, batch)` on its mesh; compiled at the first call, for the shapes of that."""

    def __init__(self, function, mesh: Mesh, rules):
        self._function, self._mesh, self._rules = function, mesh, rules
        self._program: jax.stages.Compiled | None = None

    def trace(self, state, frozen, batch) -> jax.stages.Traced:
        """For arrays or their shapes, which is all that `elva plan` has."""
        with on_mesh(self._mesh, self._rules):
            return self._function.trace(state, frozen, batch)

    def __call__(self, state: TrainState, frozen, batch) -> tuple[TrainState, Metrics]:
        if self._program is None:
            self._program = self.trace(state, frozen, batch).lower().compile()
            barrier("training step compiled")  # takes each process its own time
        return self._program(state, frozen, batch)
