"""Weights in int8 or int4, through Qwix: the decoder's matrices and the vocabulary's tables.

    int8    one scale per output channel                          scale = max |w| / 127
    int4    one scale per output channel and 64 rows of input     scale = max |w| / 7
            the vocabulary's tables in int8, since their rows are read one at a time

    value = round(w / scale)        round to nearest, ties to even; symmetric, so there is no offset

Norms, biases and the patch embedding keep their types. Activations, keys and values are those of
the compute type: only the weights are quantized. `ops/quantized.py` has the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.inference.load_weights import Keep, compute_type
from elva_jax.inference.params import Weights
from elva_jax.ops.quantized import is_quantized
from elva_jax.parallel.host_arrays import to_host
from elva_jax.utils.arrays import AnyArray

if TYPE_CHECKING:
    from qwix import QArray

Scheme = Literal["int8", "int4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUP = 64  # rows of input that share a scale in int4, or the largest divisor below it
SMALLEST_GROUP = 16
LARGEST = {"int8": 127, "int4": 7}
MISSING = 'weights="{}" needs the package qwix; pip install "elva_jax[quant]"'


def quantize_weights(weights: Weights, scheme: Scheme) -> Weights:
    """The same weights with quantized matrices.

    Raises:
      ConfigError: an unknown scheme, or Qwix is not installed.
    """
    check_scheme(scheme)
    dtype = weights.layers[0]["q_proj"]["kernel"].dtype

    def layer(params: Any) -> Any:
        return {
            name: {**part, "kernel": quantize_matrix(part["kernel"], scheme, scale_dtype=dtype)}
            if name in MATRICES
            else part
            for name, part in params.items()
        }

    table: Any = weights.embed_tokens
    head: Any = weights.lm_head
    return weights._replace(
        embed_tokens=quantize_matrix(table, "int8", axis=1),
        lm_head=None if head is None else quantize_matrix(head, "int8"),
        layers=tuple(map(layer, weights.layers)),
    )


def quantizing(config: ModelConfig, scheme: Scheme) -> Keep:
    """Quantizes each tensor as it is read, from the type of the source; see `load_weights`.

    Raises:
      ConfigError: an unknown scheme, or Qwix is not installed.
    """
    check_scheme(scheme)
    plain, dtype = compute_type(config), jnp.dtype(config.dtype)

    def keep(path: str, array: jax.Array) -> Any:
        if path in ("decoder/embed_tokens", "decoder/lm_head"):
            made = quantize_matrix(array, "int8", axis=int(path.endswith("tokens")))
        elif path.endswith("/kernel") and path.split("/")[-2] in MATRICES:
            made = quantize_matrix(array, scheme, scale_dtype=dtype)
        else:
            return plain(path, array)
        return jax.block_until_ready(made)  # dispatched ahead, many tensors would be held at once

    return keep


def rounded_weights(weights: Weights) -> Weights:
    """The values that quantized matrices stand for, in float32 on the host; others as they are."""

    def widen(leaf: Any) -> Any:
        if not is_quantized(leaf):
            return leaf
        qwix = _qwix(str(leaf.qvalue.dtype))
        return to_host(qwix.dequantize(cast("QArray", leaf).astype(jnp.float32)))

    return cast(Weights, jax.tree.map(widen, weights, is_leaf=is_quantized))


def quantize_matrix(
    matrix: AnyArray, scheme: Scheme, *, axis: int = 0, scale_dtype: Any = jnp.bfloat16
) -> QArray:
    """A quantized matrix whose dimension `axis` is the one that products sum over.

    Args:
      matrix: [K, N], or [N, K] with axis 1. Its sharding becomes that of the values, and scales
        are sharded with their weights.
      scheme: int8 or int4.
      axis: 0 or 1.
      scale_dtype: of the scales in int4; in int8, where they are few, it is float32.
    """
    _qwix(scheme)
    sharding = getattr(matrix, "sharding", None)
    program = _program(
        matrix.shape,
        scheme,
        axis,
        jnp.dtype(scale_dtype if scheme == "int4" else jnp.float32),
        sharding if isinstance(sharding, NamedSharding) else None,
    )
    return program(matrix)


@cache
def _program(
    shape: tuple[int, int],
    scheme: Scheme,
    axis: int,
    scale_dtype: jnp.dtype,
    sharding: NamedSharding | None,
) -> Callable[[AnyArray], QArray]:
    """The compiled quantization of matrices of one shape."""
    group = group_size(shape[axis]) if scheme == "int4" else shape[axis]
    quantize = partial(_quantize, scheme=scheme, axis=axis, group=group, scale_dtype=scale_dtype)
    if sharding is None:
        return jax.jit(quantize)
    shapes = jax.eval_shape(quantize, jax.ShapeDtypeStruct(shape, jnp.float32))
    scale = scale_sharding(sharding, shapes.scale.shape)
    out = jax.tree.unflatten(jax.tree.structure(shapes), [sharding, scale])
    return jax.jit(quantize, out_shardings=out)


def _quantize(
    matrix: jax.Array, *, scheme: Scheme, axis: int, group: int, scale_dtype: jnp.dtype
) -> QArray:
    largest = LARGEST[scheme]
    # Qwix divides by `largest` + 1/2 and clips what rounds beyond; this divides by `largest`, and
    # nothing has to be clipped by a conversion, which accelerators do in different ways.
    calibration = f"absmax,{(largest + 0.5) / largest}"
    return _qwix(scheme).quantize(
        matrix.astype(jnp.float32),
        jnp.dtype(scheme),
        channelwise_axes=(1 - axis,),
        tiled_axes={axis: group},
        calibration_method=calibration,
        scale_dtype=scale_dtype,
    )


def scale_sharding(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of a matrix's scales [_, _]: the matrix's where it divides their number."""
    parts = (*sharding.spec, None, None)[:2]

    def kept(size: int, part: Any) -> Any:
        names = (part,) if isinstance(part, str) else part or ()
        split = int(np.prod([sharding.mesh.shape[name] for name in names]))
        return part if size % split == 0 else None

    spec = PartitionSpec(*(kept(*pair) for pair in zip(shape, parts, strict=True)))
    return NamedSharding(sharding.mesh, spec)


def group_size(size: int) -> int:
    """The rows that share a scale: the largest divisor of `size` from 16 to 64, or else all."""
    sizes = range(min(GROUP, size), SMALLEST_GROUP - 1, -1)
    return next((n for n in sizes if size % n == 0), size)


def check_scheme(scheme: str) -> None:
    """Refuses an unknown scheme, and a known one without Qwix.

    Raises:
      ConfigError: see there.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"weights: must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    _qwix(scheme)


def scheme_of(weights: Weights) -> Scheme | None:
    """How weights are quantized; None: not at all."""
    kernel = weights.layers[0]["q_proj"]["kernel"]
    return str(kernel.qvalue.dtype) if is_quantized(kernel) else None  # type: ignore[return-value]


def weights_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes on their devices; int4 takes half a byte."""
    return sum(
        -(-math.prod(leaf.shape) * jnp.iinfo(leaf.dtype).bits // 8)
        if jnp.issubdtype(leaf.dtype, jnp.integer)
        else math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _qwix(scheme: str) -> Any:
    try:
        import qwix  # noqa: PLC0415 (optional, and half a second)
    except ImportError:
        raise ConfigError(MISSING.format(scheme)) from None
    return qwix
