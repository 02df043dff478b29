"""The state of training: what a step changes, and what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """All that changes from step to step; saved as a whole, and donated as a whole."""

    step: jax.Array  # int32, batches seen
    bad_steps: jax.Array  # int32, steps skipped so far, with a loss or gradient that is not finite
    bad_run: jax.Array  # int32, how many of these in a row, up to this step
    params: Any
    opt_state: optax.OptState


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0."""

    def zero() -> jax.Array:  # a buffer for each counter: donated arrays must not be shared
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        bad_steps=zero(),
        bad_run=zero(),
        params=params,
        opt_state=optimizer.init(params),
    )
