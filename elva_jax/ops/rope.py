"""Rotary position embedding with the extensions that transformers knows, in Qwen2's rotate-half convention."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """RoPE extension, with transformers' meaning of each field."""

    kind: str = "default"  # default | linear | dynamic | yarn
    factor: float = 1.0  # how many times the original context
    original_max_position: int = 32768  # trained context length
    beta_fast: float = 32.0  # yarn: rotations above which a dimension is extrapolated
    beta_slow: float = 1.0  # yarn: rotations below which a dimension is interpolated
    attention_factor: float | None = None  # yarn: scale of cos and sin; None: 0.1 ln(factor) + 1


PLAIN = RopeScaling()
KINDS = ("default", "linear", "dynamic", "yarn")


def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling = PLAIN, seq_len: int = 0
) -> tuple[np.ndarray, float]:
    """Inverse frequencies float32 [head_dim / 2] and the factor on cos and sin, as transformers' ROPE_INIT_FUNCTIONS compute them.

    Args:
      head_dim: width of a head.
      theta: RoPE base.
      scaling: which extension and its numbers.
      seq_len: the sequence length in use, which only `dynamic` reads; up to `original_max_position` it changes nothing.

    Raises:
      ConfigError: an unknown kind of scaling.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    if scaling.kind == "default":
        return _inverse(theta, exponent), 1.0
    if scaling.kind == "linear":
        return _inverse(theta, exponent) / np.float32(scaling.factor), 1.0
    if scaling.kind == "dynamic":
        stretch = max(seq_len, scaling.original_max_position) / scaling.original_max_position
        base = theta * (scaling.factor * stretch - (scaling.factor - 1)) ** (
            head_dim / (head_dim - 2)
        )
        return _inverse(base, exponent), 1.0
    if scaling.kind == "yarn":
        return _yarn(head_dim, theta, scaling, exponent)
    raise ConfigError(
        f"model.rope_scaling: {scaling.kind!r} is unknown; use one of {', '.join(KINDS)}"
    )


def _inverse(base: float, exponent: np.ndarray) -> np.ndarray:
    return (1.0 / np.power(np.float32(base), exponent)).astype(np.float32)


def _yarn(
    head_dim: int, theta: float, scaling: RopeScaling, exponent: np.ndarray
) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): fast dimensions are kept, slow ones interpolated, with a linear ramp between."""

    def dimension(rotations: float) -> float:
        """The dimension that turns so many times over the trained context."""
        return (
            head_dim
            * math.log(scaling.original_max_position / (rotations * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), head_dim - 1)
    width = high - low if high != low else 0.001
    interpolated = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    plain = _inverse(theta, exponent)
    frequency = plain / np.float32(scaling.factor) * interpolated + plain * (1 - interpolated)
    attention = scaling.attention_factor
    if attention is None:
        attention = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return frequency.astype(np.float32), attention


def cos_sin(
    position_BxS: jax.Array, frequency: np.ndarray, attention_factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """cos and sin float32 [B, S, head_dim / 2] of integer positions [B, S]."""
    angle_BxSxF = (
        position_BxS[..., None].astype(jnp.float32) * jnp.asarray(frequency)[None, None, :]
    )
    return jnp.cos(angle_BxSxF) * attention_factor, jnp.sin(angle_BxSxF) * attention_factor


def rotate(x_BxSxHxDh: jax.Array, cos_BxSxF: jax.Array, sin_BxSxF: jax.Array) -> jax.Array:
    """Turns queries or keys by their positions in float32; the result has the type of x."""
    cos, sin = cos_BxSxF[:, :, None, :], sin_BxSxF[:, :, None, :]
    first, second = jnp.split(x_BxSxHxDh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxSxHxDh.dtype)
