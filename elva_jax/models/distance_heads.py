"""Attention heads that start by looking a fixed number of tokens back.

Pretrained decoders have such heads, and a model that starts from random weights must learn them
before a patch knows its column. On the planes f of a head, with RoPE's frequencies w_f and an
amplitude a, the biases of query and key are the complex numbers

    q_f = a exp(-i d w_f)        k_f = a

so that, at positions p and s after RoPE, q . k = a^2 sum over f of cos((p - s - d) w_f), which is
greatest where s = p - d:

    x  x  x  x  x  x  x          d = 3
             ^________|
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from elva_jax.config.schema import ModelConfig

AMPLITUDE = 4.0  # of the biases: about nine tenths of the weight, whatever the tokens say
# What the token itself says counts for less in these heads, but is not nothing: they must be able
# to learn otherwise.
KERNEL_SCALE = 0.3


def start_distance_heads(
    layers: dict[str, Any], config: ModelConfig, frequencies: Float32[np.ndarray, " F"]
) -> dict[str, Any]:
    """Changes the first layer's last heads, one for each of `config.distance_heads`.

    Args:
      layers: the random parameters of all layers, leaves [L, ...] in their boxes.
      config: the model; the heads of one key head change together.
      frequencies: RoPE's, from the fastest plane to the slowest.
    """
    if not config.distance_heads:
        return layers
    group = config.num_heads // config.num_kv_heads
    heads = len(config.distance_heads)
    # The faster half of the planes: the slower ones hardly turn within such distances.
    fast = (np.arange(len(frequencies)) < len(frequencies) // 2).astype(np.float32)
    angle_HxF = np.outer(config.distance_heads, frequencies)
    query_HxDh = AMPLITUDE * np.concatenate(
        [fast * np.cos(angle_HxF), -fast * np.sin(angle_HxF)], axis=1
    )
    key_Dh = AMPLITUDE * np.concatenate([fast, np.zeros_like(fast)])
    key_KxDh = np.tile(key_Dh, (heads // group, 1))
    changed = {
        name: _with_last(layers[name], bias)
        for name, bias in (("q_proj", query_HxDh), ("k_proj", key_KxDh))
    }
    return layers | changed


def _with_last(projection: dict[str, Any], bias: np.ndarray) -> dict[str, Any]:
    """The projection whose last outputs in the first layer have this bias, and smaller kernels."""
    start = projection["bias"].value.shape[1] - bias.size
    kernel = projection["kernel"].value.at[0, :, start:].multiply(KERNEL_SCALE)
    values = {"bias": projection["bias"].value.at[0, start:].set(bias.ravel()), "kernel": kernel}
    return projection | {
        name: projection[name].replace_boxed(value) for name, value in values.items()
    }
