"""Sequences beyond the trained length: RoPE is scaled by 2, 4 or 8, for each row by its own length.

A token that n tokens of prompt and answer precede is computed with the smallest factor f for which
n <= f * max_position. The row's earlier keys have the same factor: where an answer crosses
f * max_position, its row is prefilled again with the next one. So neither the other rows of a batch
nor the room for an answer changes it.

A model without RoPE scaling gets YaRN, as Qwen2 documents for long input; linear scaling and YaRN
become stronger. Dynamic scaling is refused beyond the longest sequence: in transformers it changes
with every token, while the keys of earlier tokens keep theirs.

In arrays and arguments, `stretch` is the logarithm of f to base 2.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from elva_jax.config.schema import ModelConfig
from elva_jax.data.chat_tokens import may_fit
from elva_jax.errors import LayoutError
from elva_jax.models.qwen2 import rope_frequencies
from elva_jax.utils.arrays import AnyArray

FACTORS = (1, 2, 4, 8)  # times the trained length
_LOG = logging.getLogger(__name__)


def stretch_of(config: ModelConfig, tokens: int) -> int:
    """The stretch of the token after `tokens` tokens of prompt and answer.

    Raises:
      LayoutError: more tokens than the largest factor allows.
    """
    longest = config.max_position
    stretch = max(-(-tokens // longest) - 1, 0).bit_length()
    if tokens > most_tokens(config):
        further = f", or {most_tokens(config)} with RoPE scaled as far as it goes"
        raise LayoutError(
            f"the prompt and its answer take {tokens} tokens; the model's longest sequence is"
            f" {longest}{further if most_tokens(config) > longest else ''};"
            " use fewer or smaller frames"
        )
    return stretch


def check_letters(config: ModelConfig, *texts: str) -> None:
    """Refuses text that cannot fit, before it is tokenized.

    Raises:
      LayoutError: more characters than the most tokens have.
    """
    if not may_fit(most_tokens(config), *texts):
        raise LayoutError(
            f"the prompt and its answer have {sum(map(len, texts)):,} characters, far more than the"
            f" {most_tokens(config)} tokens that the model reads at most; shorten the text"
        )


def longest_of(config: ModelConfig, stretch: int) -> int:
    """The most tokens that may precede one of this stretch."""
    return FACTORS[stretch] * config.max_position


def most_tokens(config: ModelConfig) -> int:
    """The most tokens that may precede another one."""
    return longest_of(config, 0 if config.rope_scaling == "dynamic" else len(FACTORS) - 1)


def announce(config: ModelConfig, tokens: Iterable[int], stretches: Iterable[int]) -> None:
    """Logs which rows of a batch are longer than the model's longest sequence."""
    for length, stretch in dict.fromkeys(zip(tokens, stretches, strict=True)):
        if stretch:
            _LOG.info(
                "%d tokens exceed the model's longest sequence of %d: RoPE is scaled by %d (%s)",
                length,
                config.max_position,
                FACTORS[stretch],
                stretched(config, stretch).rope_scaling,
            )


def row_cos_sin(
    config: ModelConfig, position: Int[AnyArray, "B S"], stretch: Int[AnyArray, " B"]
) -> tuple[Float32[Array, "B S F"], Float32[Array, "B S F"]]:
    """Cosine and sine of RoPE's angles, for rows of any stretch."""
    frequencies, scales = (jnp.asarray(table)[stretch] for table in _tables(config))
    angle_BxSxF = position[..., None].astype(jnp.float32) * frequencies[:, None]
    scale_Bx1x1 = scales[:, None, None]
    return jnp.cos(angle_BxSxF) * scale_Bx1x1, jnp.sin(angle_BxSxF) * scale_Bx1x1


@functools.lru_cache
def _tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """By stretch: float32 [4, F] frequencies, float32 [4] factors on cos and sin."""
    rows = [rope_frequencies(stretched(config, stretch)) for stretch in range(len(FACTORS))]
    return np.stack([row for row, _ in rows]), np.array([scale for _, scale in rows], np.float32)


def stretched(config: ModelConfig, stretch: int) -> ModelConfig:
    """The model with RoPE scaled for sequences that are longer by the factor."""
    longest, factor = config.max_position, FACTORS[stretch]
    if factor == 1:
        return config
    changed = dataclasses.replace(config, max_position=longest * factor)
    if config.rope_scaling == "default":
        return dataclasses.replace(
            changed,
            rope_scaling="yarn",
            rope_factor=float(factor),
            rope_original_max_position=longest,
        )
    return dataclasses.replace(changed, rope_factor=config.rope_factor * factor)
