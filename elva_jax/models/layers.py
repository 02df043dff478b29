"""The linear layer of the decoder and of both visual embeddings."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from elva_jax.ops import linear


def normal(*axes: str | None) -> nn.initializers.Initializer:
    """Qwen2's initializer, with the logical axis names of the parameter."""
    return nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)


def dense(
    features: int,
    axes: tuple[str | None, ...],
    dtype: DTypeLike,
    *,
    use_bias: bool = True,
    name: str | None = None,
) -> nn.Dense:
    """A linear map whose kernel [in, out] has these logical axes, computed in `dtype`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(dtype),
        kernel_init=normal(*axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        dot_general=linear.dot_general,
        name=name,
    )
