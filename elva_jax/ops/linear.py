"""Matrix products of activations with weights: y = x W, over the last axis of x [..., K]."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from elva_jax.utils.arrays import AnyArray


def dot_general(
    x: Float[AnyArray, ...],
    kernel: Float[AnyArray, ...],
    dimension_numbers: tuple,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Float[Array, ...]:
    """`lax.dot_general` of activations with a matrix, for `nn.Dense(dot_general=...)`."""
    ((contracted,), _), (batch, _) = dimension_numbers
    # On a mesh, and on GPUs, the leading dimensions stay apart, since they may be sharded.
    keep = jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty
    if keep or batch or contracted != x.ndim - 1 or kernel.ndim != 2:
        return lax.dot_general(
            x,
            kernel,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )
    # On CPUs, XLA would transpose all activations element by element for the weight's gradient if
    # the leading dimensions were not flattened: a quarter of a small model's training step.
    flat = (((1,), dimension_numbers[0][1]), ((), ()))
    product = lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, flat, precision, preferred_element_type
    )
    return product.reshape(*x.shape[:-1], product.shape[-1])


def project(
    x: Float[AnyArray, "*batch K"],
    kernel: Float[AnyArray, "_ _"],
    axis: int = 0,
    preferred_element_type: DTypeLike | None = None,
) -> Float[Array, "*batch N"]:
    """Multiplies x by a matrix whose dimension `axis` is K and whose other one is N."""
    contraction = (((x.ndim - 1,), (axis,)), ((), ()))
    return dot_general(x, kernel, contraction, preferred_element_type=preferred_element_type)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def logits(
    x: Float[AnyArray, "*batch K"], table: Float[AnyArray, "_ _"], axis: int
) -> Float32[Array, "*batch N"]:
    """Multiplies x by a table whose dimension `axis` is K, in the type of x.

    The backward pass multiplies in the type of x too. By itself it would use float32, the type of
    the logits, with twice the memory at half the speed; only the sum over tokens in the table's
    gradient stays float32.
    """
    return project(x, table.astype(x.dtype), axis, preferred_element_type=jnp.float32)


def _logits_forward(x, table, axis):
    return logits(x, table, axis), (x, table)


def _logits_backward(axis, kept, gradient):
    x, table = kept
    gradient = gradient.astype(x.dtype)
    x_gradient = project(gradient, table.astype(x.dtype), 1 - axis)
    factors = (x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1]))
    if axis == 1:
        factors = factors[::-1]
    over_tokens = (((0,), (0,)), ((), ()))
    table_gradient = lax.dot_general(*factors, over_tokens, preferred_element_type=jnp.float32)
    return x_gradient, table_gradient.astype(table.dtype)


logits.defvjp(_logits_forward, _logits_backward)
