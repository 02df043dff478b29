"""FLOPs of a video prompt and its answer: the paper's accounting (Table 5), and this code's cost.

Our own cost counts the matrix products of `models/`, `ops/attention` and `inference/` at their
static, padded lengths. Elementwise work is left out, except merging, which is nothing else.
`analysis/xla.py` compares the result with XLA's own count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.elva import LayerBlock, layer_blocks, merging_of
from elva_jax.models.flops import (
    head,
    key_value_weights,
    layer_attention,
    layer_weights,
    projector,
    vision_layer,
)
from elva_jax.ops.attention.blocked import LONG, SINGLE_BLOCK
from elva_jax.ops.attention.tiled import TILE
from elva_jax.ops.merging import MergeLayer

Parts = dict[str, float]


def paper_decoder(config: ModelConfig, tokens: float) -> float:
    """The paper's decoder: linear layers only, and the head on every token.

    `tokens` is the average over layers.
    """
    layers = config.num_layers * layer_weights(config)
    return 2.0 * (layers + config.hidden_size * config.vocab_size) * tokens


def paper_encoder(tower: TeacherConfig, config: ModelConfig, frames: int) -> float:
    """The paper's CLIP tower (with class token and attention) and two-layer projector."""
    patches, width = tower.grid**2, tower.hidden_size
    blocks = vision_layer(tower, patches + 1) * tower.num_layers
    encoder = blocks + 2.0 * patches * tower.patch_size**2 * 3 * width
    return frames * (encoder + projector(width, config.hidden_size, patches))


def attended_pairs(length: int) -> int:
    """Pairs of query and key in prefill's attention.

    A block of queries is multiplied by all keys up to its own last one.
    """
    if length > LONG:
        tiles = -(-length // TILE)
        return TILE**2 * tiles * (tiles + 1) // 2
    stops = [min(start + SINGLE_BLOCK, length) for start in range(0, length, SINGLE_BLOCK)]
    return sum((stop - start) * stop for start, stop in zip((0, *stops), stops, strict=False))


def merging_layer(width: int, tokens: int) -> float:
    """`ops.merging` without its sorts.

    Norms, cosines and weighted means at 2 FLOPs per channel each, and the guard against overflow.
    """
    return 7.0 * tokens * width


def blocks_with_lengths(
    config: ModelConfig, lengths: Sequence[int]
) -> list[tuple[LayerBlock, int]]:
    """The decoder's layer blocks and their tokens.

    Args:
      config: the model.
      lengths: tokens of the prompt, and after each merging layer; a single one turns merging off.

    Raises:
      ConfigError: another number of lengths.
    """
    merging = len(lengths) > 1
    if merging and len(lengths) != 1 + len(config.merge_layers):
        raise ConfigError(
            f"lengths: {len(lengths)} for {len(config.merge_layers)} merging layers; "
            "give the first, and one after each"
        )
    return [
        (block, lengths[0 if block.merge is None else block.merge + 1])
        for block in layer_blocks(config, merging=merging)
    ]


def prefill(config: ModelConfig, lengths: Sequence[int]) -> Parts:
    """A prompt through the decoder: no head, and only keys and values of the last layer.

    Args:
      config: the model.
      lengths: padded tokens, as in `blocks_with_lengths`.

    Returns:
      linear, attention, merging.

    Raises:
      ConfigError: another number of lengths.
    """
    parts, width = {"linear": 0.0, "attention": 0.0, "merging": 0.0}, config.hidden_size
    for block, length in blocks_with_lengths(config, lengths):
        last = block.stop == config.num_layers
        whole = block.num_layers - last
        weights = whole * layer_weights(config) + last * key_value_weights(config)
        parts["linear"] += 2.0 * length * weights
        # In both directions, every block of queries meets all keys.
        pairs = length**2 if config.frame_attention == "bidirectional" else attended_pairs(length)
        parts["attention"] += whole * layer_attention(config, pairs)
        if block.merge is not None:
            parts["merging"] += merging_layer(width, lengths[block.merge])
    return parts


def continuation(config: ModelConfig, lengths: Sequence[int], new: int, slots: int) -> float:
    """New text tokens after a prefilled prompt; masked or not, they meet all keys and all slots.

    Args:
      config: the model.
      lengths: the prompt's padded tokens, as in `blocks_with_lengths`.
      new: padded tokens that are run.
      slots: padded capacity for text after the prompt, the new tokens included.
    """
    blocks = blocks_with_lengths(config, lengths)
    keys = sum(block.num_layers * (length + slots) for block, length in blocks)
    linear = 2.0 * new * config.num_layers * layer_weights(config)
    return linear + layer_attention(config, new * keys)


def answer(
    config: ModelConfig, lengths: Sequence[int], question: int, capacity: int, steps: int
) -> Parts:
    """A question of `question` padded tokens, and `steps` tokens decoded into `capacity` slots.

    Returns:
      question (with the head on its last position), decode.
    """
    slots, logits = question + capacity, head(config)
    return {
        "question": continuation(config, lengths, question, slots) + logits,
        "decode": steps * (continuation(config, lengths, 1, slots) + logits),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Tokens of a prompt by kind."""

    text: int
    specials: int  # <FRAME> and <LINE>, which do not merge
    patches: int
    tubes: int  # grid positions of patches; one patch of each always remains

    @property
    def visual(self) -> int:
        """Tokens of the frames."""
        return self.specials + self.patches

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text + self.visual


def tokens_at_retention(config: ModelConfig, content: Content, retention: float) -> tuple[int, ...]:
    """Tokens of a prompt, and after each merging layer, at a retention of its visual tokens.

    The retention is that of `retained`, or the nearest that the merging layers can leave. The free
    number is the share of patches that each layer of policy `threshold` leaves, which depends on
    the video; other layers leave their ratio, or one patch per tube where that is more.

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
        if retained(config, content, lengths(middle)) <= retention:
            low = middle
        else:
            high = middle
    return lengths(low)


def retained(config: ModelConfig, content: Content, lengths: Sequence[int]) -> float:
    """Share of the visual tokens that remains at these lengths, averaged over decoder layers."""
    blocks = blocks_with_lengths(config, lengths)
    run = sum(block.num_layers * (length - content.text) for block, length in blocks)
    return run / (config.num_layers * content.visual)


def _left(rule: MergeLayer, entering: int, share: float) -> int:
    return math.ceil(entering * (share if rule.policy == "threshold" else rule.ratio))
