"""The pre-norm stack that SigLIP, DINOv2, ViViT and LanguageBind share.

    x <- x + scale1 * out(attention(norm1(x)))
    x <- x + scale2 * fc2(activation(fc1(norm2(x))))

The two scales exist in towers with layer scale only. A tower whose blocks do more before these two
lines declares its parameters in the same table and runs its own function before `block`; see
`towers.common` for the stacked parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from elva_jax.config.schema import TeacherConfig
from elva_jax.models.towers.common import (
    HEADS,
    LAYER_NORM_EPS,
    ONES,
    Params,
    ParamTable,
    from_heads,
    head_dim_of,
    layer_norm,
    linear,
    run_layers,
    to_heads,
)
from elva_jax.ops.attention.cudnn import full_attention

Activation = Callable[[jax.Array], jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation of GELU that OpenAI's CLIP was trained with."""
    return x * nn.sigmoid(1.702 * x)


# By `teacher.activation`.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
}


class EncoderLayers(nn.Module):
    """The stack of blocks of one tower."""

    config: TeacherConfig
    num_layers: int
    layer_scale: bool = False
    eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(
        self, x: Float[Array, "n T C"]
    ) -> tuple[Float[Array, "n T C"], Float[Array, "n T C"]]:
        """The last block's input and output."""
        params = ParamTable(self, self.num_layers)
        declare_block(params, self.config, layer_scale=self.layer_scale)
        activation = ACTIVATIONS[self.config.activation]
        return run_layers(partial(block, activation=activation, eps=self.eps), x, params)


def declare_block(params: ParamTable, config: TeacherConfig, *, layer_scale: bool = False) -> None:
    """Declares the parameters that `block` reads, stacked over the layers of the table."""
    width, inner = config.hidden_size, config.intermediate_size
    params.norm("norm1", width)
    params.norm("norm2", width)
    declare_attention(params, config)
    params.dense("fc1", (width, inner), ("embed", "mlp"), _xavier(-2, -1))
    params.dense("fc2", (inner, width), ("mlp", "embed"), _xavier(-2, -1))
    if layer_scale:
        params.add("scale1", (width,), ("embed",), ONES)
        params.add("scale2", (width,), ("embed",), ONES)


def declare_attention(params: ParamTable, config: TeacherConfig, prefix: str = "") -> None:
    """Declares the four projections of `attention`, stacked over the layers of the table."""
    width, per_head = config.hidden_size, (config.num_heads, head_dim_of(config))
    for name in ("query", "key", "value"):
        shape, axes = (width, *per_head), ("embed", *HEADS)
        params.dense(f"{prefix}{name}", shape, axes, _xavier(1, (2, 3)))
    shape, axes = (*per_head, width), (*HEADS, "embed")
    params.dense(f"{prefix}out", shape, axes, _xavier((1, 2), 3), contracted=2)


def _xavier(in_axis: Any, out_axis: Any) -> Any:
    return nn.initializers.xavier_uniform(in_axis, out_axis, batch_axis=(0,))


def block(
    x: Float[Array, "n T C"], params: Params, *, activation: Activation, eps: float = LAYER_NORM_EPS
) -> Float[Array, "n T C"]:
    """One block with the parameters of one layer."""
    x = x + _scaled(attention(layer_norm(x, params, "norm1", eps), params), params, "scale1")
    y = mlp(layer_norm(x, params, "norm2", eps), params, activation)
    return x + _scaled(y, params, "scale2")


def attention(x: Float[Array, "n T C"], params: Params, prefix: str = "") -> Float[Array, "n T C"]:
    """Attention of all tokens to all tokens, between its four projections."""
    query, key, value = (to_heads(x, params, f"{prefix}{n}") for n in ("query", "key", "value"))
    return from_heads(full_attention(query, key, value), params, f"{prefix}out")


def mlp(
    x: Float[Array, "*batch C"], params: Params, activation: Activation
) -> Float[Array, "*batch C"]:
    """Two linear maps with an activation between them."""
    return linear(activation(linear(x, params, "fc1")), params, "fc2")


def _scaled(x: Float[Array, "n T C"], params: Params, name: str) -> Float[Array, "n T C"]:
    return x * params[name].astype(x.dtype)[None, None] if name in params else x
