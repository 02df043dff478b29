"""FLOPs of the matrix products of `models/`; one multiply-add is 2 FLOPs.

    y = x W with x [M, K] and W [K, N]:    2 M K N
    attention of one layer:                4 H Dh per pair of query and key (scores, values)

Elementwise work (norms, RoPE, softmax) is left out.
"""

from __future__ import annotations

import dataclasses
import math

from elva_jax.config.merv import encoder_frames
from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.config.text_schema import TextTowerConfig
from elva_jax.models.merv.fusion import CHANNELS
from elva_jax.models.towers.hiera import KERNEL, LOCAL, WIDENED, stage_config


def layer_weights(config: ModelConfig) -> int:
    """Weights of the matrices of one decoder layer."""
    d, heads = config.hidden_size, config.num_heads * config.head_dim
    return 2 * d * heads + key_value_weights(config) + 3 * d * config.intermediate_size


def key_value_weights(config: ModelConfig) -> int:
    """Weights of one layer's key and value matrices."""
    return 2 * config.hidden_size * config.num_kv_heads * config.head_dim


def layer_attention(config: ModelConfig, pairs: float) -> float:
    """Attention of one layer; grouped queries share keys, but not this work."""
    return 4.0 * config.num_heads * config.head_dim * pairs


def head(config: ModelConfig, positions: float = 1) -> float:
    """Logits at some positions."""
    return 2.0 * positions * config.hidden_size * config.vocab_size


def patch_embedding(config: ModelConfig, patches: float, tokens: float) -> float:
    """`models.patch_embed`, for arrays of that many patches and tokens, padding included."""
    width = config.patch_width
    weights, fold = config.patch_size**2 * 3 * width, 0.0
    if config.patch_embed == "video":
        # Values, and scores under both queries of each head.
        weights += width**2 + 2 * config.patch_heads * width
        # Both queries through their matrix, then folded into the key matrix.
        fold = 2.0 * 2 * 2 * width**2
    return 2.0 * patches * weights + fold + 2.0 * tokens * width * config.hidden_size


def vision_tower(tower: TeacherConfig, frames: float, layers: int | None = None) -> float:
    """Patch embedding and the first `layers` blocks (None: all), without the pooling head.

    Frames of a tower that sees clips are whole clips of `num_frames`.
    """
    clips = frames / tower.num_frames
    blocks = tower.num_layers if layers is None else layers
    if tower.kind == "hiera":
        return clips * _hiera(tower, blocks)
    values = tower.tubelet * tower.patch_size**2 * 3
    embedding = 2.0 * tower.slots * tower.grid**2 * values * tower.hidden_size
    return clips * (embedding + blocks * vision_block(tower))


def vision_block(tower: TeacherConfig) -> float:
    """One block on one clip, or on one image where each frame is seen alone."""
    special = 0 if tower.kind == "siglip" else 1 + tower.num_registers
    if tower.kind != "languagebind":
        return vision_layer(tower, tower.slots * tower.grid**2 + special)
    tokens, frames, width = tower.grid**2 + special, tower.num_frames, tower.hidden_size
    temporal = tokens * (2.0 * frames * 4 * width**2 + 4.0 * frames**2 * width)
    return temporal + frames * vision_layer(tower, tokens)


def _hiera(tower: TeacherConfig, blocks: int) -> float:
    """A Hiera's convolution and first blocks on one clip; see `models.towers.hiera`."""
    windows, total, left = tower.slots * tower.grid**2, 0.0, blocks
    for i, depth in enumerate(tower.stages):
        stage = stage_config(tower, i)
        width, inner = stage.hidden_size, stage.intermediate_size
        side = WIDENED >> i  # of a window, in tokens
        tokens = windows * side**2
        if i == 0:
            total += 2.0 * tokens * math.prod(KERNEL) * 3 * width
        after = 2.0 * tokens * (width**2 + 2 * width * inner)  # out of attention, and the MLP
        plain = 6.0 * tokens * width**2 + 4.0 * tokens * width * (side**2 if i < LOCAL else tokens)
        # Four times as many keys, half as wide; queries are projected before they are pooled, and
        # the residual path is projected as well.
        keys = 4 * side**2 if i <= LOCAL else 4 * tokens
        pooled = 8.0 * 4 * tokens * width**2 / 2 + 4.0 * tokens * width * keys
        first = int(i > 0 and left > 0)
        rest = min(depth - (i > 0), left - first)
        total += first * (pooled + after) + rest * (plain + after)
        left -= first + rest
    return total


def vision_layer(tower: TeacherConfig | TextTowerConfig, tokens: int) -> float:
    """One block on the tokens of one image or text, without a mask."""
    width = tower.hidden_size
    weights = 4 * width**2 + 2 * width * tower.intermediate_size
    return 2.0 * tokens * weights + 4.0 * tokens**2 * width


def projector(width: int, features: int, tokens: float) -> float:
    """A two-layer MLP width -> features -> features."""
    return 2.0 * tokens * (width * features + features**2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MervFront:
    """FLOPs of what MERV does before its decoder, for one clip.

    Attributes:
      encoders: of each encoder, by name.
      projectors: the linear map of each encoder's aligned features to the decoder's width.
      fusion: what makes one sequence of them.
    """

    encoders: dict[str, float]
    projectors: float
    fusion: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.encoders.values()) + self.projectors + self.fusion


def merv_front(config: ModelConfig, *, published: bool = False) -> MervFront:
    """MERV's encoders, projectors and fusion on one clip; adaptive pooling is left out.

    Args:
      config: a model with `encoders`.
      published: whether to count what MERV's code computes without using it (the last block of an
        encoder whose penultimate features are read, and the value and output projections of the
        fusion), as its paper does.
    """
    merv = config.merv
    tokens = merv.slots * merv.grid**2
    encoders, projectors = {}, 0.0
    for name, tower in config.encoders:
        layers = tower.num_layers
        if tower.features == "penultimate" and not published:
            layers -= 1
        encoders[name] = vision_tower(tower, encoder_frames(merv, tower), layers)
        projectors += 2.0 * tokens * tower.hidden_size * config.hidden_size
    fusion = merv_fusion(config, published=published)
    return MervFront(encoders=encoders, projectors=projectors, fusion=fusion)


def merv_fusion(config: ModelConfig, *, published: bool = False) -> float:
    """The fusion of E encoders' tokens; `published` as in `merv_front`."""
    count, width, inner = len(config.encoders), config.hidden_size, config.merv.fusion_width
    tokens = config.merv.slots * config.merv.grid**2
    weighted_sum = 2.0 * count * tokens * width
    if config.merv.fusion == "sequence":
        return 0.0
    if config.merv.fusion in CHANNELS:
        return 2.0 * tokens * count * width * width
    if config.merv.fusion == "scalar":
        return weighted_sum
    query, keys = 2.0 * inner**2, 2.0 * count * width * inner
    return weighted_sum + (2 if published else 1) * (query + keys)
