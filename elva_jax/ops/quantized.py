"""Matrix products with quantized weights: a matrix is integers times scales.

    W[k, n]  ~  scale[k // g, n] * value[k, n]         g rows share a scale; one per column: g = K

Quantized matrices are `qwix.QArray`s, which `inference/quantization.py` makes. The products are
computed in the type of the activations: integers of 8 bits are exact in bfloat16. With one scale
per column the product is scaled, and not the matrix.

No program may keep a matrix that has been widened to the compute type. On accelerators XLA widens
it within the product. On CPUs it does not, so large matrices are multiplied block by block there;
and while a program runs, XLA's CPU backend reads int4 as int8:

    value [K, N] --> [blocks, K / blocks, N] --> widened and multiplied one after the other
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from elva_jax.utils.arrays import AnyArray

BLOCK_VALUES = 2**21  # most values of a matrix that are widened at a time on a CPU


@runtime_checkable
class Quantized(Protocol):
    """A `qwix.QArray`; Qwix is optional, so its class is not imported here."""

    qvalue: Any  # int8 or int4
    scale: Any  # float, with 1 or K / g entries along the axis that is summed over
    zero_point: Any  # None: scales alone
    shape: Any  # of the matrix


def is_quantized(array: Any) -> TypeGuard[Quantized]:
    """Whether a weight is quantized."""
    return isinstance(array, Quantized)


def product(
    x: Float[AnyArray, "*batch K"], matrix: Quantized, axis: int = 0, dtype: DTypeLike | None = None
) -> Float[Array, "*batch N"]:
    """Multiplies x by a quantized matrix whose dimension `axis` is K, in `dtype` or that of x."""
    # Without the barrier XLA would widen the weights once before a decoding loop, and keep them.
    values, array = lax.optimization_barrier((matrix.qvalue, jnp.asarray(x)))
    per_column = matrix.scale.shape[axis] == 1
    parts = (values,) if per_column else (values, matrix.scale)
    count, out = _blocks(parts), jnp.dtype(dtype or array.dtype)
    multiply = partial(_multiply, dtype=out) if count == 1 else partial(_in_blocks, count=count)
    y = multiply(array, parts, axis)
    return (y * _row(matrix.scale, array.ndim) if per_column else y).astype(out)


def rows(table: Quantized, index: Int[AnyArray, "*batch"], dtype: DTypeLike) -> Float[Array, "..."]:
    """Rows of a quantized table [V, D], as [*batch, D] in `dtype`."""
    return _widen((table.qvalue[index], table.scale[index]), jnp.dtype(dtype))


def _row(scale: jax.Array, ndim: int) -> jax.Array:
    return scale.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


def _widen(parts: tuple[jax.Array, ...], dtype: jnp.dtype) -> jax.Array:
    """The matrix of its values and, if they are given, its scales, in `dtype`."""
    values = parts[0].astype(dtype)
    if len(parts) == 1:
        return values
    scale = parts[1].astype(dtype)
    grouped, shape = [], []
    for size, scales in zip(values.shape, scale.shape, strict=True):
        grouped += [scales, size // scales]
        shape += [scales, 1]
    return (values.reshape(grouped) * scale.reshape(shape)).reshape(values.shape)


def _multiply(
    x: jax.Array, parts: tuple[jax.Array, ...], axis: int, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    matrix = _widen(parts, x.dtype)
    contraction = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, matrix, contraction, preferred_element_type=dtype)


def _blocks(parts: tuple[jax.Array, ...]) -> int:
    """How many blocks of its first dimension a matrix is multiplied in: the fewest that suffice."""
    if jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return 1
    whole = parts[-1].shape[0]  # a group of rows is not divided
    least = -(-parts[0].size // BLOCK_VALUES)
    return next(n for n in range(min(least, whole), whole + 1) if whole % n == 0)


def _in_blocks(x: jax.Array, parts: tuple[jax.Array, ...], axis: int, count: int) -> jax.Array:
    stacked = jax.tree.map(lambda part: part.reshape(count, -1, part.shape[1]), parts)
    flat = x.reshape(-1, x.shape[-1])
    shape = (*x.shape[:-1], parts[0].shape[1 - axis])
    if axis == 1:  # blocks of outputs
        y = lax.map(partial(_multiply, flat, axis=1), stacked)
        return y.swapaxes(0, 1).reshape(shape)
    pieces = flat.reshape(flat.shape[0], count, -1).swapaxes(0, 1)

    def add(total: jax.Array, block: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
        piece, part = block
        return total + _multiply(piece, part, 0), None

    zero = jnp.zeros((flat.shape[0], shape[-1]), jnp.float32)
    return lax.scan(add, zero, (pieces, stacked))[0].reshape(shape)
