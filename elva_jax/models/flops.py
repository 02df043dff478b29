"""FLOPs of a video and its answer, by the paper's accounting (Table 5) and as this code really runs. One multiply-add is 2 FLOPs.

Our own cost is that of the matrix products of `models/`, `ops/attention` and `inference/` at their static, padded lengths; what is
element by element (norms, RoPE, softmax) is left out but for merging, which is nothing else. `analysis/xla.py` holds it against XLA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.elva import LayerBlock, layer_blocks, merging_of
from elva_jax.ops.attention.blocked import LONG, SINGLE_BLOCK
from elva_jax.ops.attention.tiled import TILE
from elva_jax.ops.merging import MergeLayer

Parts = dict[str, float]


def layer_weights(decoder: ModelConfig) -> int:
    """Weights of the matrices of one decoder layer."""
    d, heads = decoder.hidden_size, decoder.num_heads * decoder.head_dim
    return 2 * d * heads + key_value_weights(decoder) + 3 * d * decoder.intermediate_size


def key_value_weights(decoder: ModelConfig) -> int:
    """Weights of a layer's key and value matrices, which are smaller than the others under grouped queries."""
    return 2 * decoder.hidden_size * decoder.num_kv_heads * decoder.head_dim


def paper_decoder(decoder: ModelConfig, tokens: float) -> float:
    """The paper's accounting of a decoder: linear layers only, the head on every one of the tokens, averaged over layers."""
    return (
        2.0
        * (decoder.num_layers * layer_weights(decoder) + decoder.hidden_size * decoder.vocab_size)
        * tokens
    )


def paper_encoder(tower: TeacherConfig, decoder: ModelConfig, frames: int) -> float:
    """The paper's accounting of a CLIP tower (with its class token, attention counted) and of a two-layer projector to the decoder."""
    patches, width = tower.grid**2, tower.hidden_size
    encoder = (
        vision_layer(tower, patches + 1) * tower.num_layers
        + 2.0 * patches * tower.patch_size**2 * 3 * width
    )
    return frames * (encoder + projector(width, decoder.hidden_size, patches))


def vision_tower(tower: TeacherConfig, images: int, layers: int | None = None) -> float:
    """Patch embedding and the first `layers` blocks (None: all) of `models.siglip.SiglipVision`, without its pooling head."""
    patches = tower.grid**2
    blocks = tower.num_layers if layers is None else layers
    return images * (
        2.0 * patches * tower.patch_size**2 * 3 * tower.hidden_size
        + blocks * vision_layer(tower, patches)
    )


def vision_layer(tower: TeacherConfig, tokens: int) -> float:
    """One block on the tokens of one image, each of which sees all."""
    width = tower.hidden_size
    return (
        2.0 * tokens * (4 * width**2 + 2 * width * tower.intermediate_size)
        + 4.0 * tokens**2 * width
    )


def projector(width: int, features: int, tokens: int) -> float:
    """A two-layer MLP width -> features -> features."""
    return 2.0 * tokens * (width * features + features**2)


def patch_embedding(config: ModelConfig, patches: int, tokens: int) -> float:
    """`models.patch_embed` on so many rows of the patch array and so many tokens, padding included in both."""
    width = config.patch_width
    weights = config.patch_size**2 * 3 * width
    fold = 0.0
    if config.patch_embed == "video":
        weights += (
            width**2 + 2 * config.patch_heads * width
        )  # values, and the scores under the two queries of each head
        fold = (
            2.0 * 2 * 2 * width**2
        )  # both queries through their matrix, then folded into the key matrix
    return 2.0 * patches * weights + fold + 2.0 * tokens * width * config.hidden_size


def attended_pairs(length: int) -> int:
    """Pairs of query and key that prefill's attention works on: a block of queries meets all keys up to its own last one."""
    if length > LONG:
        tiles = -(-length // TILE)
        return TILE**2 * tiles * (tiles + 1) // 2
    stops = [min(start + SINGLE_BLOCK, length) for start in range(0, length, SINGLE_BLOCK)]
    return sum((stop - start) * stop for start, stop in zip((0, *stops), stops, strict=False))


def layer_attention(decoder: ModelConfig, pairs: float) -> float:
    """Scores and weighted values of one layer; grouped queries share keys but not this work."""
    return 4.0 * decoder.num_heads * decoder.head_dim * pairs


def merging_layer(width: int, tokens: int) -> float:
    """`ops.merging` without its sorts: norms, cosines and weighted means at 2 FLOPs a channel each, and the guard against overflow."""
    return 7.0 * tokens * width


def head(decoder: ModelConfig, positions: int = 1) -> float:
    """Logits of so many positions."""
    return 2.0 * positions * decoder.hidden_size * decoder.vocab_size


def pieces(config: ModelConfig, lengths: Sequence[int]) -> list[tuple[LayerBlock, int]]:
    """The decoder's segments with their lengths: the front's, then those behind each merging layer; one alone: merging is off.

    Raises:
      ConfigError: another number of lengths.
    """
    merging = len(lengths) > 1
    if merging and len(lengths) != 1 + len(config.merge_layers):
        raise ConfigError(
            f"lengths: {len(lengths)} for {len(config.merge_layers)} merging layers; give the first and one behind each"
        )
    return [
        (piece, lengths[0 if piece.merge is None else piece.merge + 1])
        for piece in layer_blocks(config, merging=merging)
    ]


def prefill(config: ModelConfig, lengths: Sequence[int]) -> Parts:
    """A prompt's front through the decoder (`inference.prefill`): no head, and of the last layer its keys and values alone.

    Args:
      config: the model.
      lengths: padded tokens, as in `pieces`.

    Returns:
      linear, attention, merging.

    Raises:
      ConfigError: another number of lengths.
    """
    parts = {"linear": 0.0, "attention": 0.0, "merging": 0.0}
    for piece, length in pieces(config, lengths):
        last = piece.stop == config.num_layers
        whole = piece.num_layers - last
        parts["linear"] += (
            2.0 * length * (whole * layer_weights(config) + last * key_value_weights(config))
        )
        parts["attention"] += whole * layer_attention(config, attended_pairs(length))
        if piece.merge is not None:
            parts["merging"] += merging_layer(config.hidden_size, lengths[piece.merge])
    return parts


def continuation(config: ModelConfig, lengths: Sequence[int], new: int, slots: int) -> float:
    """`inference.extend`: new text tokens behind a prefilled front; whatever they see or not, they meet all its keys and all slots.

    Args:
      config: the model.
      lengths: the front's padded tokens, as in `pieces`.
      new: padded tokens that are run.
      slots: padded room for the text behind the front, the new tokens among it.
    """
    keys = sum(piece.num_layers * (length + slots) for piece, length in pieces(config, lengths))
    return 2.0 * new * config.num_layers * layer_weights(config) + layer_attention(
        config, new * keys
    )


def answer(
    config: ModelConfig, lengths: Sequence[int], question: int, room: int, steps: int
) -> Parts:
    """A question of `question` padded tokens behind a front, and `steps` tokens decoded one by one into `room` slots.

    Returns:
      question (with the head on its last position), decode.
    """
    slots, logits = question + room, head(config)
    return {
        "question": continuation(config, lengths, question, slots) + logits,
        "decode": steps * (continuation(config, lengths, 1, slots) + logits),
    }


class Content(NamedTuple):
    """What the tokens of a prompt's front are."""

    text: int
    specials: int  # <FRAME> and <LINE>, which do not merge
    patches: int
    tubes: int  # grid positions of patches: so many remain at least

    @property
    def visual(self) -> int:
        return self.specials + self.patches

    @property
    def tokens(self) -> int:
        return self.text + self.visual


def tokens_at_retention(config: ModelConfig, content: Content, retention: float) -> tuple[int, ...]:
    """Tokens of a front, and behind each merging layer, where `retention` of its visual tokens remain (see `retained`), or the nearest
    to it that the merging layers can leave.

    The free number is the share of patches that each layer of policy `threshold` leaves, which depends on the video; the other layers
    leave their ratio, or one patch a tube where that is more.

    Raises:
      ConfigError: the model has no merging layers.
    """
    rules = merging_of(config).layers
    if not rules:
        raise ConfigError("model.merge_layers: names no layer, so nothing merges; name some")

    def lengths(share: float) -> tuple[int, ...]:
        left = [content.patches]
        for rule in rules:
            left.append(max(_left(rule, left[-1], share), min(content.tubes, left[-1])))
        return tuple(content.text + content.specials + patches for patches in left)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if retained(config, content, lengths(middle)) <= retention
            else (low, middle)
        )
    return lengths(low)


def retained(config: ModelConfig, content: Content, lengths: Sequence[int]) -> float:
    """Share of the visual tokens that remains, averaged over decoder layers, where the front has these lengths."""
    run = sum(
        piece.num_layers * (length - content.text) for piece, length in pieces(config, lengths)
    )
    return run / (config.num_layers * content.visual)


def _left(rule: MergeLayer, entering: int, share: float) -> int:
    return math.ceil(entering * (share if rule.policy == "threshold" else rule.ratio))
