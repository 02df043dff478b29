"""EVA-CLIP (arXiv 2303.15389): the vision towers of EVA01 and EVA02, teachers of Table 4.

    pixels -> [class token; patches] + positions -> blocks -> norm -> the class token is pooled

    EVA01:  mlp(x) = fc2(gelu(fc1(x)))
    EVA02:  mlp(x) = fc2(norm(silu(gate(x)) * fc1(x))), a norm on attended values as well, and RoPE
            on queries and keys: the first half of a head turns with the row, the second with the
            column of its patch

The mathematics is that of the authors' EVAVisionTransformer. See `towers.common` for the blocks and
the stacked parameters.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    HEADS,
    ZEROS,
    Params,
    ParamTable,
    VisionFeatures,
    embed_patches,
    from_heads,
    head_dim_of,
    layer_norm,
    linear,
    position_embedding,
    prepend_class_token,
    run_layers,
    standardize,
    to_heads,
)
from elva_jax.models.towers.encoder import ACTIVATIONS, block
from elva_jax.ops.attention.cudnn import full_attention
from elva_jax.utils.arrays import AnyArray

# CLIP's normalization of RGB in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
ROPE_THETA = 10_000.0
ROPE_GRID = 16  # side, in patches, of the grid that EVA02 was pre-trained on


class EvaClipVision(nn.Module):
    """The vision tower."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "n H W 3"]) -> VisionFeatures:
        """Encodes square images of `config.image_size` pixels.

        Values are in [-1, 1], as for SigLIP, and normalized here as CLIP does. The pooled feature
        is the class token after the final norm, before CLIP's projection.

        Raises:
          ConfigError: another image size, or a size that its patches do not divide.
        """
        c, size, width = self.config, self.config.image_size, self.config.hidden_size
        if pixels.shape[1:] != (size, size, 3) or size % c.patch_size:
            raise ConfigError(
                f"EVA-CLIP was given images of shape {pixels.shape[1:]};"
                f" teacher.image_size wants {(size, size, 3)}, in patches of {c.patch_size}"
            )
        normalized = standardize(pixels, MEAN, STD)
        params = ParamTable(self)
        patches = embed_patches(params, normalized.astype(self.dtype), c)
        x = prepend_class_token(params, patches)
        x = x + position_embedding(params, 1 + c.grid**2, width).astype(self.dtype)[None]
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = EvaClipLayers(c, name="layers")(x)
        params.norm("post_norm", width)
        last = layer_norm(x, params, "post_norm")
        return VisionFeatures(penultimate[:, 1:], last[:, 1:], last[:, 0])


class EvaClipLayers(nn.Module):
    """The stack of blocks."""

    config: TeacherConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "n T C"]
    ) -> tuple[Float[Array, "n T C"], Float[Array, "n T C"]]:
        """The last block's input and output."""
        c, width, inner = self.config, self.config.hidden_size, self.config.intermediate_size
        head_dim, second = head_dim_of(c), self.config.kind == "eva02_clip"
        per_head = (c.num_heads, head_dim)
        params, matrix = ParamTable(self, c.num_layers), nn.initializers.truncated_normal(0.02)
        params.norm("norm1", width)
        params.norm("norm2", width)
        for name in ("query", "key", "value"):
            params.add(f"{name}_kernel", (width, *per_head), ("embed", *HEADS), matrix)
        for name in ("query", "value"):  # a bias of keys would not change the softmax
            params.add(f"{name}_bias", per_head, HEADS, ZEROS)
        params.dense("out", (*per_head, width), (*HEADS, "embed"), matrix, contracted=2)
        if second:
            params.norm("attention_norm", width, None)
            params.norm("mlp_norm", inner, "mlp")
        for name in ("gate", "fc1") if second else ("fc1",):
            params.dense(name, (width, inner), ("embed", "mlp"), matrix)
        params.dense("fc2", (inner, width), ("mlp", "embed"), matrix)
        if second:
            step = partial(eva02_block, angles=rope_angles(c.grid, head_dim))
        else:
            step = partial(block, activation=ACTIVATIONS["gelu"])
        return run_layers(step, x, params)


def eva02_block(
    x: Float[Array, "n T C"], params: Params, *, angles: Float32[np.ndarray, "P F"]
) -> Float[Array, "n T C"]:
    """One pre-norm block of EVA02 with the parameters of one layer."""
    y = layer_norm(x, params, "norm1")
    query, value, key = (to_heads(y, params, name) for name in ("query", "value", "key"))
    y = full_attention(rotate(query, angles), rotate(key, angles), value)
    y = layer_norm(y.reshape(*y.shape[:2], -1), params, "attention_norm").reshape(y.shape)
    x = x + from_heads(y, params)
    y = layer_norm(x, params, "norm2")
    gated = nn.silu(linear(y, params, "gate")) * linear(y, params, "fc1")
    return x + linear(layer_norm(gated, params, "mlp_norm"), params, "fc2")


def rope_angles(grid: int, head_dim: int) -> Float32[np.ndarray, "P F"]:
    """Angles of the P = grid * grid patches; F = head_dim / 2, first of rows, then of columns.

    Positions are scaled to the grid of the pre-training, whatever the actual one.

    Raises:
      ConfigError: a head that does not split into pairs for rows and columns.
    """
    if head_dim % 4:
        raise ConfigError(
            f"EVA02-CLIP needs heads of a width divisible by 4, got {head_dim};"
            " change teacher.num_heads"
        )
    quarter = head_dim // 4
    frequency_F = 1.0 / ROPE_THETA ** (np.arange(quarter, dtype=np.float32) / quarter)
    angle_GxF = (np.arange(grid, dtype=np.float32) / grid * ROPE_GRID)[:, None] * frequency_F[None]
    rows = np.broadcast_to(angle_GxF[:, None], (grid, grid, quarter))
    columns = np.broadcast_to(angle_GxF[None, :], (grid, grid, quarter))
    return np.concatenate([rows, columns], axis=-1).reshape(grid * grid, 2 * quarter)


def rotate(
    x: Float[Array, "n T H D"], angles: Float32[np.ndarray, "P F"]
) -> Float[Array, "n T H D"]:
    """Turns adjacent pairs of channels in float32, of all tokens but the class token, the first."""
    cos, sin = (jnp.asarray(f(angles))[None, :, None, :] for f in (np.cos, np.sin))
    even, odd = (x[:, 1:, :, k::2].astype(jnp.float32) for k in (0, 1))
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([x[:, :1], turned.reshape(x[:, 1:].shape).astype(x.dtype)], axis=1)
