"""LoRA (arXiv 2106.09685): small trained factors beside the frozen matrices of the decoder's layers.

A projection y = x W becomes y = x W + (alpha / rank) x A B, with B zero at first. The factors lie beside the matrix that they adapt, as
`q_proj_lora/{a, b}` beside `q_proj/kernel`, stacked over layers like it. `merge` adds them to it, and leaves an ordinary model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import LoraConfig
from elva_jax.ops import linear

SUFFIX = "_lora"


def adapts(config: LoraConfig | None, projection: str) -> bool:
    """Whether a projection of the decoder's layers has factors."""
    return config is not None and any(re.search(target, projection) for target in config.targets)


def is_factor(path: str) -> bool:
    """Whether a '/'-joined parameter path is one of the factors."""
    return f"{SUFFIX}/" in path


def factor_of(path: str, factor: str) -> str:
    """Path of a matrix's factor (a | b): `…/q_proj_lora/a` of `…/q_proj/kernel`; of what is no matrix, a path of nothing."""
    return f"{path.removesuffix('/kernel')}{SUFFIX}/{factor}"


class Lora(nn.Module):
    """(alpha / rank) x A B."""

    config: LoraConfig
    features: int
    axes: tuple[str, str]  # logical axes of the matrix that it adapts
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., features] in the compute type for x [..., K]."""

        def factor(name, init, shape, axes):
            return self.param(
                name, nn.with_logical_partitioning(init, axes), shape, jnp.float32
            ).astype(self.dtype)

        rank = self.config.rank
        a = factor("a", nn.initializers.lecun_normal(), (x.shape[-1], rank), (self.axes[0], None))
        b = factor("b", nn.initializers.zeros, (rank, self.features), (None, self.axes[1]))
        return linear.project(linear.project(x, a), b) * (self.config.alpha / rank)


def merge(params: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """A tree without factors, their products added to the matrices that they adapt, in float32; other leaves as they are."""
    out: dict[str, Any] = {}
    for name, leaf in params.items():
        if name.endswith(SUFFIX):
            continue
        out[name] = merge(leaf, alpha) if isinstance(leaf, Mapping) else leaf
        if factors := params.get(name + SUFFIX):
            out[name] = {
                **leaf,
                "kernel": adapted(leaf["kernel"], factors["a"], factors["b"], alpha),
            }
    return out


def adapted(kernel, a, b, alpha: float):
    """A matrix [..., K, N] and its factors [..., K, R], [..., R, N] in one, in the kernel's type; NumPy's arrays stay NumPy's."""
    numpy = jnp if isinstance(kernel, jax.Array) else np
    product = numpy.matmul(numpy.asarray(a, numpy.float32), numpy.asarray(b, numpy.float32))
    return (numpy.asarray(kernel, numpy.float32) + (alpha / a.shape[-1]) * product).astype(
        kernel.dtype
    )
