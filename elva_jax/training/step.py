"""One training step: gradients over micro-batches, and one update unless something is not finite.

batch -> micro-batches -> mean gradient g -> optimizer -> params + update
                             |                              ^
                             +-- loss and |g| finite? ------+ (if not: nothing changes)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elva_jax.checkpoints.state import TrainState
from elva_jax.parallel.collectives import barrier
from elva_jax.parallel.sharding import on_mesh
from elva_jax.parallel.zero import Zero, make_zero
from elva_jax.training.metrics import Metrics, is_summed
from elva_jax.training.optimizer import join_frozen, trained_part
from elva_jax.training.setup import TrainSetup

# (params, frozen trees, batch) -> (loss, metrics)
LossFn = Callable[[Any, Any, Any], tuple[jax.Array, Metrics]]
# (params, frozen trees, batch) -> batch
LookAhead = Callable[[Any, Any, Any], Any]


def value_and_grad(
    loss_fn: LossFn,
    params: Any,
    frozen: Any,
    batch: Any,
    accumulate: int,
    zero: Zero | None = None,
    look_ahead: LookAhead | None = None,
) -> tuple[jax.Array, Metrics, Any]:
    """Loss, metrics and gradient, averaged over `accumulate` micro-batches that run in turn.

    With `zero`, parameters are read as it says, and gradients lie where parameters are stored.
    `look_ahead` takes the whole batch first, where it is cut into several.
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
    if look_ahead is not None:
        batch = look_ahead(used, frozen, batch)
    micro = split_rows(batch, accumulate)

    def add(total, rows):
        (loss, metrics), grads = gradient(rows)
        return zero.shard_grads(jax.tree.map(jnp.add, total, grads)), (loss, metrics)

    zeros = zero.shard_grads(jax.tree.map(jnp.zeros_like, params))
    total, (losses, metrics) = jax.lax.scan(add, zeros, micro)
    metrics = jax.tree_util.tree_map_with_path(
        lambda path, values: values.sum(0) if is_summed(path) else values.mean(0), metrics
    )
    return losses.mean(0), metrics, jax.tree.map(lambda g: g / accumulate, total)


def split_rows(batch: Any, count: int) -> Any:
    """Micro-batches [count, b / count, ...] of a batch [b, ...].

    Micro-batch i takes rows i, i + count, i + 2 count, ... so that rows stay on the device that
    holds them.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def join_rows(parts: Any) -> Any:
    """Back from `split_rows`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


class TrainStep:
    """`(state, frozen, batch) -> (state, metrics)`, compiled at the first call; donates the state.

    A loss or gradient norm that is not finite leaves parameters and optimizer as they were, and is
    counted in the state.
    """

    def __init__(self, setup: TrainSetup):
        config, self._setup = setup.task.config, setup
        trained = trained_part(setup.shardings.params, setup.optimizer.labels)
        self._zero = make_zero(config.mesh.zero, trained, config.model.dtype)
        self._function = jax.jit(
            self._train_step, donate_argnums=0, out_shardings=(setup.shardings, None)
        )
        self._program: jax.stages.Compiled | None = None

    def trace(self, state: Any, frozen: Any, batch: Any) -> jax.stages.Traced:
        """Traces the step for arrays, or for shapes alone as `elva plan` does."""
        with on_mesh(self._setup.mesh, self._setup.rules):
            return self._function.trace(state, frozen, batch)

    def __call__(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        """Runs the step on sharded arrays."""
        if self._program is None:
            self._program = self.trace(state, frozen, batch).lower().compile()
            barrier("training step compiled")  # processes take different times to compile
        return self._program(state, frozen, batch)

    def _train_step(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        task, optimizer = self._setup.task, self._setup.optimizer
        accumulate = task.stage.optimizer.accumulate
        # Frozen parameters are constants: they have no backward pass, no gradient, and no part in
        # its norm.
        params = trained_part(state.params, optimizer.labels)

        def loss(params: Any, frozen: Any, rows: Any) -> tuple[jax.Array, Metrics]:
            return task.loss(join_frozen(params, state.params), frozen, rows)

        def look_ahead(params: Any, frozen: Any, rows: Any) -> Any:
            return task.look_ahead(join_frozen(params, state.params), frozen, rows)

        if accumulate > 1:
            batch = task.prepare(batch)
        value, metrics, grads = value_and_grad(
            loss, params, frozen, batch, accumulate, self._zero, look_ahead
        )
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, params)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (optax.apply_updates(params, updates), opt_state),
            (params, state.opt_state),
        )
        bad = 1 - good.astype(jnp.int32)
        after = TrainState(
            step=state.step + 1,
            bad_steps=state.bad_steps + bad,
            bad_run=(state.bad_run + 1) * bad,
            params=join_frozen(params, state.params),
            opt_state=opt_state,
        )
        return after, {
            "loss": value,
            **metrics,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(params),
            # Skipped steps do not advance the schedule.
            "learning_rate": optimizer.schedule(state.step - state.bad_steps),
            "bad_steps": after.bad_steps,
            "bad_run": after.bad_run,
        }
