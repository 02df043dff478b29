"""MERV (arXiv 2501.01426): its models, parameters and multiply-accumulates beside its paper's.

    1,024 visual tokens + N text tokens -> encoders + projectors + fusion
                                           + decoder (linear, head on every token, attention)

Its paper counts multiply-accumulates of one forward pass over a video and a text of random
characters, and writes the sums alone. N is what they solve for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from elva_jax.config.merv import clip_tokens
from elva_jax.config.schema import MervConfig, ModelConfig, TeacherConfig
from elva_jax.models import flops
from elva_jax.tools.analysis.paper import VICUNA_7B
from elva_jax.tools.analysis.parameters import count_parameters, count_tower

Fusion = Literal["attention", "scalar", "sequence", "channels", "channels_norm"]

_LARGE: dict[str, Any] = dict(
    image_size=224,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
)
_BASE: dict[str, Any] = dict(
    image_size=224,
    patch_size=16,
    hidden_size=768,
    intermediate_size=3072,
    num_layers=12,
    num_heads=12,
)
PUBLISHED = MervConfig()
# In MERV's order, in which features are fused.
ENCODERS = {
    "languagebind": TeacherConfig(
        kind="languagebind", activation="gelu", num_frames=8, dtype="bfloat16", **_LARGE
    ),
    "dinov2": TeacherConfig(
        kind="dinov2",
        activation="gelu",
        num_registers=4,
        pretrained_image_size=518,
        dtype="bfloat16",
        **_LARGE,
    ),
    "vivit": TeacherConfig(
        kind="vivit", num_frames=32, tubelet=2, features="last", dtype="bfloat16", **_BASE
    ),
    "siglip": TeacherConfig(kind="siglip", activation="gelu", dtype="bfloat16", **_BASE),
}


def merv_on(
    decoder: ModelConfig,
    merv: MervConfig = PUBLISHED,
    encoders: Mapping[str, TeacherConfig] = ENCODERS,
) -> ModelConfig:
    """MERV on a decoder, by default as published."""
    return dataclasses.replace(
        decoder,
        patch_embed="merv",
        merv=dataclasses.replace(merv, encoders=tuple(encoders)),
        encoders=tuple(encoders.items()),
    )


# LLaMA-2-7B has Vicuna's shape. MERV adds a padding token, and pads the table to a multiple of 64.
MERV_7B = merv_on(dataclasses.replace(VICUNA_7B, vocab_size=32_064))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A fusion of the paper's ablation (Table 4).

    Attributes:
      tera: multiply-accumulates, in T.
      accuracy: average accuracy in percent.
      text_tokens: the random text's length that `tera` solves for.
    """

    tera: float
    accuracy: float
    text_tokens: int


CELLS: dict[Fusion, Cell] = {
    "attention": Cell(tera=17.19, accuracy=56.83, text_tokens=865),
    "sequence": Cell(tera=43.09, accuracy=54.45, text_tokens=874),
    "channels": Cell(tera=16.29, accuracy=56.64, text_tokens=737),
    "scalar": Cell(tera=16.24, accuracy=55.01, text_tokens=739),
}


def with_fusion(config: ModelConfig, fusion: Fusion) -> ModelConfig:
    """The same MERV with another fusion."""
    return dataclasses.replace(config, merv=dataclasses.replace(config.merv, fusion=fusion))


def published_macs(config: ModelConfig, text_tokens: int) -> dict[str, float]:
    """Multiply-accumulates of one forward pass as MERV's paper counts them, by part.

    Args:
      config: the model.
      text_tokens: after the visual tokens.

    Returns:
      Each encoder by name, "projectors", "fusion", "decoder linear" (with the head on every
      token), "decoder attention" (all pairs, without the causal mask) and "total".
    """
    front = flops.merv_front(config, published=True)
    tokens = clip_tokens(config.merv) + text_tokens
    parts = {name: count / 2 for name, count in front.encoders.items()}
    parts |= {"projectors": front.projectors / 2, "fusion": front.fusion / 2}
    linear, attention = _decoder(config)
    parts |= {"decoder linear": linear * tokens, "decoder attention": attention * tokens**2}
    return parts | {"total": sum(parts.values())}


def text_tokens_of(config: ModelConfig, macs: float) -> float:
    """The length of the text at which `published_macs` has this total."""
    linear, attention = _decoder(config)
    rest = flops.merv_front(config, published=True).total / 2 - macs
    tokens = (math.sqrt(linear**2 - 4 * attention * rest) - linear) / (2 * attention)
    return tokens - clip_tokens(config.merv)


def _decoder(config: ModelConfig) -> tuple[float, float]:
    """Multiply-accumulates of the decoder per token, and per pair of tokens."""
    linear = config.num_layers * flops.layer_weights(config) + flops.head(config) / 2
    return linear, config.num_layers * flops.layer_attention(config, 1) / 2


def front_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters between encoders and decoder, and those of a published checkpoint left out.

    Returns:
      "projectors" and "fusion", which a model has; and, for fusion attention, "unused value
      projection" and "unused output projection", which a published checkpoint has besides.
    """
    width, inner = config.hidden_size, config.merv.fusion_width
    count = len(config.encoders)
    projectors = sum((tower.hidden_size + 1) * width for _, tower in config.encoders)
    fusion = {
        "attention": inner + (inner + 1) * inner + (width + 1) * inner,  # query, W_q, W_k
        "scalar": count,
        "sequence": 0,
        "channels": (count * width + 1) * width,
        "channels_norm": (count * width + 1) * width + 2 * count * width,
    }[config.merv.fusion]
    parts = {"projectors": projectors, "fusion": fusion}
    if config.merv.fusion == "attention":
        parts["unused value projection"] = (width + 1) * inner
        parts["unused output projection"] = (inner + 1) * inner
    return parts


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of every part: each encoder by name, those of `front_parameters`, "decoder"."""
    encoders = {name: count_tower(tower) for name, tower in config.encoders}
    bare = dataclasses.replace(config, patch_embed="naive", encoders=())
    counts = count_parameters(bare)
    decoder = {"decoder": counts["total"] - counts["patch_embed"]}
    return encoders | front_parameters(config) | decoder
