"""Parts that the decoder and the visual embeddings share."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from elva_jax.ops import linear, quantized
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import Kind, TokenLayout

INITIALIZER_RANGE = 0.02  # Qwen2's


def normal(*axes: str | None, std: float = INITIALIZER_RANGE) -> nn.initializers.Initializer:
    """Qwen2's initializer, with the logical axis names of the parameter."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class Linear(nn.Dense):
    """`nn.Dense` that also takes a quantized kernel, as inference has it."""

    def __call__(self, inputs: AnyArray) -> jax.Array:
        """Inputs [..., in] times the kernel, plus the bias."""
        kernel: Any = self.get_variable("params", "kernel")
        if not quantized.is_quantized(kernel):
            return super().__call__(inputs)
        dtype = self.dtype or inputs.dtype
        y = quantized.product(inputs.astype(dtype), kernel)
        if not self.use_bias:
            return y
        bias = jnp.asarray(self.get_variable("params", "bias"), dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def patches_at_tokens(x: Float[Array, "B N D"], layout: TokenLayout) -> Float[Array, "B S D"]:
    """The embedding of each patch at its own token, zeros at all other tokens."""
    is_patch_BxSx1 = (layout.kind == Kind.PATCH)[..., None]
    own_BxSx1 = jnp.where(is_patch_BxSx1, layout.patch_index[..., None], 0)
    return jnp.where(is_patch_BxSx1, jnp.take_along_axis(x, own_BxSx1, axis=1), 0)


def dense(
    features: int,
    axes: tuple[str | None, ...],
    dtype: DTypeLike,
    *,
    use_bias: bool = True,
    std: float = INITIALIZER_RANGE,
    bias_std: float = 0.0,
    name: str | None = None,
) -> Linear:
    """A linear map whose kernel [in, out] has these logical axes, computed in `dtype`."""
    bias = nn.initializers.normal(bias_std) if bias_std else nn.initializers.zeros
    return Linear(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(dtype),
        kernel_init=normal(*axes, std=std),
        bias_init=nn.with_logical_partitioning(bias, axes[1:]),
        dot_general=linear.dot_general,
        name=name,
    )
