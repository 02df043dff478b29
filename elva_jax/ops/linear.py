"""Matrix products of activations with weights."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def dot_general(
    x, kernel, dimension_numbers, precision=None, preferred_element_type=None, out_sharding=None
) -> jax.Array:
    """`lax.dot_general` of activations [..., K] with a matrix, for `nn.Dense(dot_general=...)`.

    On CPUs the leading dimensions are flattened first. Otherwise XLA transposes all activations, element by element, for the weight's
    gradient: a quarter of a small model's training step. Elsewhere, and on a mesh, the dimensions stay apart, as they may be sharded.
    """
    ((contracted,), _), (batch, _) = dimension_numbers
    apart = jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty
    if apart or batch or contracted != x.ndim - 1 or kernel.ndim != 2:
        return lax.dot_general(
            x,
            kernel,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )
    flat = (((1,), dimension_numbers[0][1]), ((), ()))
    product = lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, flat, precision, preferred_element_type
    )
    return product.reshape(*x.shape[:-1], product.shape[-1])


def project(x, kernel, axis: int = 0, preferred_element_type=None) -> jax.Array:
    """[..., N]: activations [..., K] times a matrix whose dimension `axis` is K and whose other one is N."""
    return dot_general(
        x,
        kernel,
        (((x.ndim - 1,), (axis,)), ((), ())),
        preferred_element_type=preferred_element_type,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def logits(x, table, axis: int) -> jax.Array:
    """float32 [..., N]: activations [..., K] times a table whose dimension `axis` is K, in the type of x.

    The backward pass multiplies in the type of x too. Left to itself it would take float32, as the logits are, on twice the memory and
    at half the speed; only the sum over tokens in the table's gradient stays float32.
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
    table_gradient = lax.dot_general(
        *factors, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return x_gradient, table_gradient.astype(table.dtype)


logits.defvjp(_logits_forward, _logits_backward)
