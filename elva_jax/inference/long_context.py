"""Sequences beyond the trained length: RoPE is scaled, and a warning says so."""

from __future__ import annotations

import dataclasses
import logging

from elva_jax.errors import LayoutError
from elva_jax.models.config import ElvaConfig

LARGEST_FACTOR = 8  # times the trained length
_LOG = logging.getLogger(__name__)


def rope_scaled(config: ElvaConfig, tokens: int) -> ElvaConfig:
    """The model for sequences of `tokens` tokens, with RoPE scaled by 2, 4 or 8 where needed.

    Up to the model's longest sequence it is returned as it is. A model without RoPE scaling gets
    YaRN, as Qwen2 documents for long input; one that has a scaling keeps its kind.

    Raises:
      LayoutError: more tokens than the largest factor allows.
    """
    longest = config.decoder.max_position
    if tokens <= longest:
        return config
    factor = 1 << (-(-tokens // longest) - 1).bit_length()
    if factor > LARGEST_FACTOR:
        raise LayoutError(
            f"the prompt and its answer take {tokens} tokens; the model's longest sequence is"
            f" {longest}, or {LARGEST_FACTOR * longest} with RoPE scaled as far as it goes;"
            " use fewer or smaller frames"
        )
    scaling = config.decoder.rope_scaling
    if scaling.kind == "default":
        scaling = dataclasses.replace(
            scaling, kind="yarn", factor=float(factor), original_max_position=longest
        )
    elif scaling.kind != "dynamic":  # dynamic scaling counts with the longest sequence
        scaling = dataclasses.replace(scaling, factor=scaling.factor * factor)
    _LOG.warning(
        "%d tokens exceed the model's longest sequence of %d: RoPE is scaled by %d (%s)",
        tokens,
        longest,
        factor,
        scaling.kind,
    )
    decoder = dataclasses.replace(
        config.decoder, rope_scaling=scaling, max_position=longest * factor
    )
    return dataclasses.replace(config, decoder=decoder)
