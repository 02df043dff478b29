"""Checks of the values in the config.json of a Hugging Face folder, before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, ConvertError
from elva_jax.utils.numbers import (
    MOST_LAYERS,
    MOST_PIXELS,
    MOST_TOKENS,
    MOST_WIDTH,
    Range,
    real,
    shown,
    whole,
)

GROUPS = (
    *("vision_config", "vision_config_dict", "vision_cfg", "text_config"),
    *("rope_parameters", "rope_scaling"),
)
_WIDTH, _COUNT, _EDGE = whole(1, MOST_WIDTH), whole(1, MOST_LAYERS), whole(1, MOST_PIXELS)
_LENGTH, _ABOVE = whole(1, MOST_TOKENS), real(0, open=True)
NUMBERS: dict[str, Range] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "head_dim"), _WIDTH),
    **dict.fromkeys(("width", "head_width", "patch_width", "embed_dim"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), _COUNT),
    **dict.fromkeys(("layers", "patch_heads", "num_heads", "type_vocab_size"), _COUNT),
    **dict.fromkeys(("image_size", "patch_size", "pt_hw_seq_len"), _EDGE),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), _LENGTH),
    **dict.fromkeys(("num_frames", "num_channels"), _COUNT),
    "num_register_tokens": whole(0, MOST_LAYERS),
    "sliding_window": whole(0),
    "max_window_layers": whole(0),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), real(0)),
    **dict.fromkeys(("rope_theta", "factor", "mlp_ratio", "pixel_std"), _ABOVE),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor"), _ABOVE),
    "pixel_mean": real(0, 1),
    "partial_rotary_factor": real(0),
}
# Keys that a folder may leave open; `vision_config` and the like may be missing as well.
OPTIONAL = (
    *("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers", "rope_theta"),
    *("original_max_position_embeddings", "factor", "partial_rotary_factor"),
    *("pixel_mean", "pixel_std"),
)
TEXTS = ("model_type", "hidden_act", "rope_type", "type")


def check_values(config: Mapping[str, Any], file: Path) -> None:
    """Refuses numbers that no model has, and values of another type.

    Raises:
      ConvertError: the first such key, by file and name.
    """
    for name in GROUPS:
        group = config.get(name)
        if group is not None and not isinstance(group, Mapping):
            raise ConvertError(f"{file}: {name} must be an object, got {shown(group)}")
        _check_group(group or {}, file, f"{name}.")
    _check_group(config, file, "")
    if "vision_cfg" in config:
        return
    vision = config.get("vision_config") or {}
    for group, at in ((config, ""), (vision, "vision_config.")):
        heads, width = group.get("num_attention_heads"), group.get("hidden_size")
        shared = group.get("num_key_value_heads")
        if heads and width and width % heads and not group.get("head_dim"):
            raise ConvertError(
                f"{file}: {at}num_attention_heads = {heads} does not divide hidden_size = {width}"
            )
        if heads and shared and heads % shared:
            raise ConvertError(
                f"{file}: {at}num_key_value_heads = {shared} does not divide"
                f" num_attention_heads = {heads}"
            )


def _check_group(group: Mapping[str, Any], file: Path, at: str) -> None:
    for name, value in group.items():
        if value is None and name in OPTIONAL:
            continue
        if allowed := NUMBERS.get(name):
            try:
                allowed.check(f"{at}{name}", value)
            except ConfigError as error:
                raise ConvertError(f"{file}: {error}") from None
        elif name in TEXTS and not (isinstance(value, str) or value is None):
            raise ConvertError(f"{file}: {at}{name} must be text, got {shown(value)}")
        elif name == "layer_types" and not isinstance(value, (list, type(None))):
            raise ConvertError(f"{file}: {at}{name} must be a list, got {shown(value)}")
