"""LoRA (arXiv 2106.09685): small trained factors beside the frozen matrices of the decoder.

    y = x W  becomes  y = x W + (alpha / R) x A B        W [K, N], A [K, R], B [R, N]; B starts at 0

        x --+---- W ---------- + -- y
            |                  |
            +-- A -- B -- (alpha / R)

The factors of `q_proj/kernel` are `q_proj_lora/{a, b}`, stacked over layers like it. `merge` adds
their products to the matrices, which leaves an ordinary model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from elva_jax.utils.arrays import AnyArray

SUFFIX = "_lora"


def is_factor(path: str) -> bool:
    """Whether a '/'-joined parameter path is one of the factors."""
    return f"{SUFFIX}/" in path


def factor_of(path: str, factor: str) -> str:
    """Path of a matrix's factor (a | b): `.../q_proj_lora/a` for `.../q_proj/kernel`.

    For other parameters it is a path that does not exist.
    """
    return f"{path.removesuffix('/kernel')}{SUFFIX}/{factor}"


def merge(params: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """The tree without factors, their products added in float32 to the matrices they adapt."""
    out: dict[str, Any] = {}
    for name, leaf in params.items():
        if name.endswith(SUFFIX):
            continue
        out[name] = merge(leaf, alpha) if isinstance(leaf, Mapping) else leaf
        if factors := params.get(name + SUFFIX):
            kernel = adapted(leaf["kernel"], factors["a"], factors["b"], alpha)
            out[name] = {**leaf, "kernel": kernel}
    return out


def adapted(
    kernel: Float[AnyArray, "*layers K N"],
    a: Float[AnyArray, "*layers K R"],
    b: Float[AnyArray, "*layers R N"],
    alpha: float,
) -> Float[AnyArray, "*layers K N"]:
    """A matrix with its factors' product added, in the kernel's type; NumPy stays NumPy."""
    numpy = jnp if isinstance(kernel, jax.Array) else np
    product = numpy.matmul(numpy.asarray(a, numpy.float32), numpy.asarray(b, numpy.float32))
    merged = numpy.asarray(kernel, numpy.float32) + (alpha / a.shape[-1]) * product
    return merged.astype(kernel.dtype)
