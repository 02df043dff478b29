"""What a training step carries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """All that changes from step to step; the whole of it is saved, and the whole of it is donated."""

    step: jax.Array  # int32, batches seen
    bad_steps: (
        jax.Array
    )  # int32, steps skipped so far because the loss or the gradient was not finite
    bad_run: jax.Array  # int32, how many of them in a row up to now
    params: Any
    opt_state: optax.OptState


def create(params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state at step 0."""

    def zero() -> jax.Array:  # one buffer each: donated arrays must not be shared
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        bad_steps=zero(),
        bad_run=zero(),
        params=params,
        opt_state=optimizer.init(params),
    )
