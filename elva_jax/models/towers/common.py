"""What the vision towers share: patches, parameters with logical axes, and the pieces of a transformer block as plain functions."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError

LAYER_NORM_EPS = 1e-6  # of every tower


def patchify(pixels_nxHxWx3: jax.Array, patch: int, grid: int) -> jax.Array:
    """[n, H, W, 3] -> [n, grid*grid, patch*patch*3]: row-major patches; inside a patch rows, columns, channels."""
    n = pixels_nxHxWx3.shape[0]
    x = pixels_nxHxWx3[:, : grid * patch, : grid * patch].reshape(n, grid, patch, grid, patch, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid * grid, patch * patch * 3)


def unpatchify(patches_nxGGxK: jax.Array, patch: int, size: int) -> jax.Array:
    """Back from `patchify` to images [n, size, size, 3], with zeros beyond the last whole patch."""
    n, grid = patches_nxGGxK.shape[0], size // patch
    x = (
        patches_nxGGxK.reshape(n, grid, grid, patch, patch, 3)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(n, grid * patch, grid * patch, 3)
    )
    beyond = (0, size - grid * patch)
    return jnp.pad(x, ((0, 0), beyond, beyond, (0, 0)))


def head_dim_of(config: TeacherConfig) -> int:
    """Width of a tower's heads.

    Raises:
      ConfigError: the heads do not divide the width.
    """
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"teacher.hidden_size {config.hidden_size} does not divide into teacher.num_heads {config.num_heads}"
        )
    return config.hidden_size // config.num_heads


def param(module: nn.Module, name: str, shape, axes, init=None) -> jax.Array:
    """A float32 parameter with logical axis names."""
    init = init or nn.initializers.lecun_normal()
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def position_embedding(module: nn.Module, count: int, width: int) -> jax.Array:
    """A learned table [count, width]."""
    return param(
        module,
        "position_embedding",
        (count, width),
        (None, "embed"),
        nn.initializers.normal(1 / math.sqrt(width)),
    )


def norm_params(module: nn.Module, name: str, width: int) -> tuple[jax.Array, jax.Array]:
    """Scale and bias [width] of a layer norm."""
    scale = param(module, f"{name}_scale", (width,), ("embed",), nn.initializers.ones_init())
    return scale, param(module, f"{name}_bias", (width,), ("embed",), nn.initializers.zeros_init())


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias along the last axes of x."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., I] times kernel [I, O], plus bias [O]."""
    return add_bias(x @ kernel.astype(x.dtype), bias)


def project(x_nxTxC: jax.Array, kernel_CxHxD: jax.Array, bias_HxD: jax.Array) -> jax.Array:
    """[n, T, H, D], split into heads."""
    return add_bias(
        jnp.einsum("ntc,chd->nthd", x_nxTxC, kernel_CxHxD.astype(x_nxTxC.dtype)), bias_HxD
    )


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer norm in float32, whatever the compute type."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    shape = (1,) * (x.ndim - 1) + scale.shape
    return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


def to_pixels(frames: jax.Array) -> jax.Array:
    """uint8 to float32 in [-1, 1], the input of every vision tower."""
    return frames.astype(jnp.float32) / 127.5 - 1.0
