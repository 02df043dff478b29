"""Sequences beyond the trained length: RoPE is scaled, and a log line says so."""

from __future__ import annotations

import dataclasses
import logging

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import LayoutError

LARGEST_FACTOR = 8  # times the trained length
_LOG = logging.getLogger(__name__)


def rope_factor(config: ModelConfig, tokens: int) -> int:
    """The factor by which RoPE is scaled for sequences of `tokens` tokens: 1, 2, 4 or 8.

    Raises:
      LayoutError: more tokens than the largest factor allows.
    """
    longest = config.max_position
    factor = 1 << max(-(-tokens // longest) - 1, 0).bit_length()
    if factor > LARGEST_FACTOR:
        raise LayoutError(
            f"the prompt and its answer take {tokens} tokens; the model's longest sequence is"
            f" {longest}, or {LARGEST_FACTOR * longest} with RoPE scaled as far as it goes;"
            " use fewer or smaller frames"
        )
    return factor


def rope_scaled(config: ModelConfig, tokens: int) -> ModelConfig:
    """The model for sequences of `tokens` tokens, with RoPE scaled by 2, 4 or 8 where needed.

    Up to the model's longest sequence it is returned as it is. A model without RoPE scaling gets
    YaRN, as Qwen2 documents for long input; one that has a scaling keeps its kind.

    Raises:
      LayoutError: more tokens than the largest factor allows.
    """
    longest, factor = config.max_position, rope_factor(config, tokens)
    if factor == 1:
        return config
    changed = dataclasses.replace(config, max_position=longest * factor)
    if config.rope_scaling == "default":
        changed = dataclasses.replace(
            changed,
            rope_scaling="yarn",
            rope_factor=float(factor),
            rope_original_max_position=longest,
        )
    elif config.rope_scaling != "dynamic":  # dynamic scaling counts with the longest sequence
        changed = dataclasses.replace(changed, rope_factor=config.rope_factor * factor)
    _LOG.info(
        "%d tokens exceed the model's longest sequence of %d: RoPE is scaled by %d (%s)",
        tokens,
        longest,
        factor,
        changed.rope_scaling,
    )
    return changed
