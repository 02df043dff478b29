"""Rotary position embedding, with the extensions of transformers, in Qwen2's rotate-half order.

Channels f and f + Dh/2 of a head are one plane, which the position p turns by p w_f:

    x'[f]        = x[f] cos(p w_f) - x[f + Dh/2] sin(p w_f)
    x'[f + Dh/2] = x[f + Dh/2] cos(p w_f) + x[f] sin(p w_f)        w_f = theta^(-2 f / Dh)

    x   [ 0  1  2  3 | 4  5  6  7 ]      Dh = 8: the planes are (0, 4), (1, 5), (2, 6), (3, 7)

so the product of a query and a key depends on the difference of their positions alone. An extension
lowers the w_f, for sequences longer than those in training.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from elva_jax.errors import ConfigError
from elva_jax.utils.arrays import AnyArray


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """RoPE extension, with transformers' meaning of each field."""

    kind: str = "default"  # default | linear | dynamic | yarn | llama3
    factor: float = 1.0  # how many times the original context
    original_max_position: int = 32768  # trained context length
    beta_fast: float = 32.0  # yarn: rotations above which a dimension is extrapolated
    beta_slow: float = 1.0  # yarn: rotations below which a dimension is interpolated
    attention_factor: float | None = None  # yarn: scale of cos and sin; None: 0.1 ln(factor) + 1
    low_freq_factor: float = 1.0  # llama3: rotations below which one is interpolated
    high_freq_factor: float = 4.0  # llama3: rotations above which one is kept


PLAIN = RopeScaling()
KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling = PLAIN, seq_len: int = 0
) -> tuple[Float32[np.ndarray, " F"], float]:
    """The w_f of F = head_dim / 2 planes, and a factor on cos and sin, as transformers has them.

    Args:
      head_dim: width of a head.
      theta: RoPE base.
      scaling: which extension and its numbers.
      seq_len: the current sequence length, which only `dynamic` reads; up to
        `original_max_position` it changes nothing.

    Raises:
      ConfigError: an unknown kind of scaling.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    if scaling.kind == "default":
        return _inverse(theta, exponent), 1.0
    if scaling.kind == "linear":
        return _inverse(theta, exponent) / np.float32(scaling.factor), 1.0
    if scaling.kind == "dynamic":
        longer = max(seq_len, scaling.original_max_position) / scaling.original_max_position
        growth = scaling.factor * longer - (scaling.factor - 1)
        return _inverse(theta * growth ** (head_dim / (head_dim - 2)), exponent), 1.0
    if scaling.kind == "yarn":
        return _yarn(head_dim, theta, scaling, exponent)
    if scaling.kind == "llama3":
        return _llama3(_inverse(theta, exponent), scaling), 1.0
    raise ConfigError(
        f"model.rope_scaling: {scaling.kind!r} is unknown; use one of {', '.join(KINDS)}"
    )


def _inverse(base: float, exponent: Float32[np.ndarray, " F"]) -> Float32[np.ndarray, " F"]:
    return (1.0 / np.power(np.float32(base), exponent)).astype(np.float32)


def _yarn(
    head_dim: int, theta: float, scaling: RopeScaling, exponent: Float32[np.ndarray, " F"]
) -> tuple[Float32[np.ndarray, " F"], float]:
    """YaRN (arXiv 2309.00071): keeps fast planes, interpolates slow ones, with a ramp between."""

    def plane(rotations: float) -> float:
        """The plane that makes this number of rotations over the trained context."""
        wavelength = scaling.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low = max(math.floor(plane(scaling.beta_fast)), 0)
    high = min(math.ceil(plane(scaling.beta_slow)), head_dim - 1)
    width = high - low if high != low else 0.001  # transformers' guard against a division by 0
    interpolated = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    plain = _inverse(theta, exponent)
    frequency = plain / np.float32(scaling.factor) * interpolated + plain * (1 - interpolated)
    attention = scaling.attention_factor
    if attention is None:
        attention = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return frequency.astype(np.float32), attention


def _llama3(plain: Float32[np.ndarray, " F"], scaling: RopeScaling) -> Float32[np.ndarray, " F"]:
    """Llama 3.1's: as YaRN, but the ramp is linear in rotations over the trained context."""
    rotations = scaling.original_max_position * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    frequency = plain / np.float32(scaling.factor) * (1 - kept) + plain * kept
    return frequency.astype(np.float32)


def cos_sin(
    position: Int[AnyArray, "B S"],
    frequency: Float32[AnyArray, " F"],
    attention_factor: float = 1.0,
) -> tuple[Float32[Array, "B S F"], Float32[Array, "B S F"]]:
    """Cosine and sine of the angles p w_f."""
    angle_BxSxF = position[..., None].astype(jnp.float32) * jnp.asarray(frequency)[None, None, :]
    return jnp.cos(angle_BxSxF) * attention_factor, jnp.sin(angle_BxSxF) * attention_factor


def rotate(
    x: Float[Array, "B S H Dh"], cos: Float32[Array, "B S F"], sin: Float32[Array, "B S F"]
) -> Float[Array, "B S H Dh"]:
    """Turns queries or keys by their positions in float32; the result has the type of x."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
