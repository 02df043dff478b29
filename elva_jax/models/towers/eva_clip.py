"""EVA-CLIP (arXiv 2303.15389): the vision towers of EVA01-CLIP and EVA02-CLIP, the second teacher of the paper's Table 4.

The mathematics is that of the authors' EVAVisionTransformer. Layers are stacked: every parameter of `layers` has a leading axis [L, ...].
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    LAYER_NORM_EPS,
    add_bias,
    head_dim_of,
    layer_norm,
    linear,
    norm_params,
    param,
    patchify,
    position_embedding,
    project,
)
from elva_jax.models.towers.siglip import Params

# CLIP's normalisation of RGB in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
ROPE_THETA = 10_000.0
ROPE_GRID = 16  # patches along the side that EVA02's positions are scaled to


class EvaClipOutput(NamedTuple):
    """Vision features of n images; GG = G*G patches in row-major order, without the class token."""

    penultimate: jax.Array  # [n, GG, C] input of the last layer, without a norm
    last: jax.Array  # [n, GG, C] after the last layer and the final norm
    pooled: jax.Array  # [n, C] the class token, after the final norm and before CLIP's projection


class EvaClipVision(nn.Module):
    """The vision tower."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels_nxHxWx3: jax.Array) -> EvaClipOutput:
        """Encodes square images of `config.image_size` pixels, values in [-1, 1] as for SigLIP; CLIP's normalisation is done here.

        Raises:
          ConfigError: another image size, or a size that its patches do not divide.
        """
        c, size, grid = self.config, self.config.image_size, self.config.grid
        if pixels_nxHxWx3.shape[1:] != (size, size, 3) or size % c.patch_size:
            raise ConfigError(
                f"EVA-CLIP was given images of shape {pixels_nxHxWx3.shape[1:]}; teacher.image_size wants {(size, size, 3)},"
                f" in patches of {c.patch_size}"
            )
        mean, std = (jnp.array(values).reshape(1, 1, 1, 3) for values in (MEAN, STD))
        pixels = ((pixels_nxHxWx3.astype(jnp.float32) + 1) / 2 - mean) / std
        kernel = param(
            self, "patch_kernel", (c.patch_size**2 * 3, c.hidden_size), ("patch", "embed")
        )
        bias = param(self, "patch_bias", (c.hidden_size,), ("embed",), nn.initializers.zeros_init())
        patches = linear(patchify(pixels.astype(self.dtype), c.patch_size, grid), kernel, bias)
        class_token = param(
            self, "class_token", (1, c.hidden_size), (None, "embed"), nn.initializers.normal(0.02)
        )
        first = jnp.broadcast_to(
            class_token.astype(self.dtype)[None], (len(patches), 1, c.hidden_size)
        )
        x = (
            jnp.concatenate([first, patches], axis=1)
            + position_embedding(self, 1 + grid * grid, c.hidden_size).astype(self.dtype)[None]
        )
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = EvaClipLayers(c, name="layers")(x)
        last = layer_norm(x, *norm_params(self, "post_norm", c.hidden_size), LAYER_NORM_EPS)
        return EvaClipOutput(penultimate[:, 1:], last[:, 1:], last[:, 0])


class EvaClipLayers(nn.Module):
    """A stack of pre-norm blocks."""

    config: TeacherConfig

    @nn.compact
    def __call__(self, x_nxTxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The last block's input and output."""
        c, heads, width, inner = (
            self.config,
            self.config.num_heads,
            self.config.hidden_size,
            self.config.intermediate_size,
        )
        head_dim = head_dim_of(c)
        params = {}

        def add(name, shape, axes, init=None):
            init = init or nn.initializers.zeros_init()
            params[name] = param(self, name, (c.num_layers, *shape), ("layers", *axes), init)

        def norm(name, size, axis):
            add(f"{name}_scale", (size,), (axis,), nn.initializers.ones_init())
            add(f"{name}_bias", (size,), (axis,))

        matrix = nn.initializers.truncated_normal(0.02)
        norm("norm1", width, "embed")
        norm("norm2", width, "embed")
        for name in ("query", "key", "value"):
            add(f"{name}_kernel", (width, heads, head_dim), ("embed", "heads", "head_dim"), matrix)
        for name in ("query", "value"):  # keys have no bias: it would not change the softmax
            add(f"{name}_bias", (heads, head_dim), ("heads", "head_dim"))
        add("out_kernel", (heads, head_dim, width), ("heads", "head_dim", "embed"), matrix)
        add("out_bias", (width,), ("embed",))
        second = c.kind == "eva02_clip"
        if second:
            norm("attention_norm", width, None)
            norm("mlp_norm", inner, "mlp")
        for name in ("gate", "fc1") if second else ("fc1",):
            add(f"{name}_kernel", (width, inner), ("embed", "mlp"), matrix)
            add(f"{name}_bias", (inner,), ("mlp",))
        add("fc2_kernel", (inner, width), ("mlp", "embed"), matrix)
        add("fc2_bias", (width,), ("embed",))
        angles = rope_angles(c.grid, head_dim, ROPE_GRID) if second else None

        def body(x, layer):
            return nn.with_logical_constraint(
                block(x, layer, angles, LAYER_NORM_EPS), ("batch", None, "embed")
            ), None

        before, _ = jax.lax.scan(body, x_nxTxC, {name: p[:-1] for name, p in params.items()})
        after, _ = body(before, {name: p[-1] for name, p in params.items()})
        return before, after


def block(x_nxTxC: jax.Array, p: Params, angles_PxF: np.ndarray | None, eps: float) -> jax.Array:
    """One pre-norm block with the parameters of one layer; with `angles_PxF` it is one of EVA02: RoPE, SwiGLU, inner norms."""
    y = layer_norm(x_nxTxC, p["norm1_scale"], p["norm1_bias"], eps)
    query, value = (
        project(y, p[f"{name}_kernel"], p[f"{name}_bias"]) for name in ("query", "value")
    )
    key = jnp.einsum("ntc,chd->nthd", y, p["key_kernel"].astype(y.dtype))
    if angles_PxF is not None:
        query, key = rotate(query, angles_PxF), rotate(key, angles_PxF)
    y = jax.nn.dot_product_attention(query, key, value)
    if angles_PxF is not None:
        flat = layer_norm(
            y.reshape(*y.shape[:2], -1), p["attention_norm_scale"], p["attention_norm_bias"], eps
        )
        y = flat.reshape(y.shape)
    x = x_nxTxC + add_bias(
        jnp.einsum("nthd,hdc->ntc", y, p["out_kernel"].astype(y.dtype)), p["out_bias"]
    )
    y = layer_norm(x, p["norm2_scale"], p["norm2_bias"], eps)
    inner = linear(y, p["fc1_kernel"], p["fc1_bias"])
    if angles_PxF is None:
        inner = nn.gelu(inner, approximate=False)
    else:
        inner = nn.silu(linear(y, p["gate_kernel"], p["gate_bias"])) * inner
        inner = layer_norm(inner, p["mlp_norm_scale"], p["mlp_norm_bias"], eps)
    return x + linear(inner, p["fc2_kernel"], p["fc2_bias"])


def rope_angles(grid: int, head_dim: int, rope_grid: int) -> np.ndarray:
    """Angles float32 [grid*grid, head_dim / 2] of the patches: the first half turns with the row, the second with the column.

    Rows and columns are scaled to a side of `rope_grid`, the grid of the pre-training, whatever the grid at hand.

    Raises:
      ConfigError: a head that does not split into pairs for rows and columns.
    """
    if head_dim % 4:
        raise ConfigError(
            f"EVA02-CLIP needs heads of a width divisible by 4, got {head_dim}; change teacher.num_heads"
        )
    quarter = head_dim // 4
    frequency_F = 1.0 / ROPE_THETA ** (np.arange(quarter, dtype=np.float32) / quarter)
    angle_GxF = (np.arange(grid, dtype=np.float32) / grid * rope_grid)[:, None] * frequency_F[None]
    row_GxGxF = np.broadcast_to(angle_GxF[:, None], (grid, grid, quarter))
    column_GxGxF = np.broadcast_to(angle_GxF[None, :], (grid, grid, quarter))
    return np.concatenate([row_GxGxF, column_GxGxF], axis=-1).reshape(grid * grid, 2 * quarter)


def rotate(x_nxTxHxD: jax.Array, angles_PxF: np.ndarray) -> jax.Array:
    """Turns neighbouring pairs of channels of the patches in float32; the class token, which comes first, stays. T = P + 1, D = 2 F."""
    cos, sin = (jnp.asarray(f(angles_PxF))[None, :, None, :] for f in (np.cos, np.sin))
    even, odd = (
        x_nxTxHxD[:, 1:, :, 0::2].astype(jnp.float32),
        x_nxTxHxD[:, 1:, :, 1::2].astype(jnp.float32),
    )
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    patches = turned.reshape(x_nxTxHxD[:, 1:].shape).astype(x_nxTxHxD.dtype)
    return jnp.concatenate([x_nxTxHxD[:, :1], patches], axis=1)
