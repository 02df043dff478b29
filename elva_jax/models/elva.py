"""The whole model: patches and text to hidden states, with hierarchical merging between segments of the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import LoraConfig, ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models.encoder_embed import EncoderEmbed
from elva_jax.models.patch_embed import PatchEmbed
from elva_jax.models.qwen2 import Qwen2
from elva_jax.ops import merging as merging_ops
from elva_jax.video.layout import Kind, TokenLayout


class ElvaOutput(NamedTuple):
    """What a forward pass gives; C is the last bucket (S without one)."""

    hidden: jax.Array  # [B, C, D] behind the final norm
    layout: TokenLayout  # [B, C] of the surviving tokens
    size: jax.Array  # [B, C] float32, how many original tokens each stands for
    survivor: jax.Array  # [B, S] int32, where every original token is now; -1 for PAD
    merges: tuple[merging_ops.MergeStats, ...]  # of each merging layer, [B]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerBlock:
    """A run of decoder layers between two merging layers."""

    start: int  # first layer
    stop: int  # last layer + 1
    merge: int | None  # number of the merging layer in front of it; None: there is none

    @property
    def num_layers(self) -> int:
        """How many layers it has."""
        return self.stop - self.start


def merging_of(config: ModelConfig) -> merging_ops.Merging:
    """The merging layers that the keys `merge_*` describe.

    Raises:
      ConfigError: keys of different lengths.
    """
    keys = ("merge_layers", "merge_policies", "merge_thresholds", "merge_ratios")
    columns = {key: getattr(config, key) for key in keys}
    for key, values in columns.items():
        if len(values) != len(config.merge_layers):
            raise ConfigError(
                f"model.{key}: needs one entry for each of merge_layers = {config.merge_layers},"
                f" has {len(values)}"
            )
    layers = zip(*columns.values(), strict=True)
    return merging_ops.Merging(
        tuple(merging_ops.MergeLayer(*layer) for layer in layers), config.merge_lines
    )


def with_merging(config: ModelConfig, merging: merging_ops.Merging) -> ModelConfig:
    """The same model with other merging layers."""
    return dataclasses.replace(
        config,
        merge_layers=tuple(layer.before_layer for layer in merging.layers),
        merge_policies=tuple(layer.policy for layer in merging.layers),
        merge_thresholds=tuple(layer.threshold for layer in merging.layers),
        merge_ratios=tuple(layer.ratio for layer in merging.layers),
        merge_lines=merging.merge_lines,
    )


def layer_blocks(config: ModelConfig, *, merging: bool) -> tuple[LayerBlock, ...]:
    """The decoder's layer blocks in order.

    Raises:
      ConfigError: merging layers that do not increase or lie outside the decoder.
    """
    layers, total = merging_of(config).layers if merging else (), config.num_layers
    cuts = [rule.before_layer for rule in layers]
    if cuts != sorted(set(cuts)) or any(not 0 <= cut < total for cut in cuts):
        raise ConfigError(
            f"model.merge_layers: must increase within 0 … {total - 1}, got {tuple(cuts)}"
        )
    edges = (*cuts, total)
    first = (LayerBlock(start=0, stop=edges[0], merge=None),) if edges[0] > 0 else ()
    return first + tuple(
        LayerBlock(start=edges[k], stop=edges[k + 1], merge=k) for k in range(len(cuts))
    )


def merge_batch(
    config: ModelConfig,
    x_BxSxD: jax.Array,
    layout: TokenLayout,
    size_BxS: jax.Array,
    index: int,
    bucket: int | None = None,
) -> merging_ops.Merged:
    """The config's index-th merging layer on a batch: `ops.merging.Merged` with a leading batch axis."""
    x_BxSxD = nn.with_logical_constraint(x_BxSxD, ("batch", None, None))  # it sorts whole rows
    rules = merging_of(config)

    def one(x, layout, size):
        return merging_ops.merge(
            x, layout, size, rules.layers[index], merge_lines=rules.merge_lines, bucket=bucket
        )

    merged = jax.vmap(one)(x_BxSxD, layout, size_BxS)
    return merged._replace(x=nn.with_logical_constraint(merged.x, ("batch", "seq", None)))


def visual_embed(config: ModelConfig) -> nn.Module:
    """The module that turns patches and a layout into visual tokens [B, S, D]."""
    return EncoderEmbed(config) if config.patch_embed == "encoder" else PatchEmbed(config)


def input_embeddings(
    embed: Callable[[jax.Array], jax.Array], visual_BxSxD: jax.Array, layout: TokenLayout
) -> jax.Array:
    """[B, S, D]: text by `embed`, which takes vocabulary ids, among the visual tokens; at padding what those have there."""
    is_text = layout.kind == Kind.TEXT
    return jnp.where(
        is_text[..., None], embed(jnp.where(is_text, layout.token_id, 0)), visual_BxSxD
    )


def dummy_inputs(config: ModelConfig) -> tuple[np.ndarray, TokenLayout]:
    """Patches [1, N, P*P*3] and a layout [1, 2] of padding: what `Elva(config).init` has to be given."""
    patches = np.zeros((1, config.frame_patches, config.patch_size**2 * 3), np.uint8)
    return patches, TokenLayout.padding(1, 2)


class Elva(nn.Module):
    """ELVA: patch embedding, Qwen2 decoder and merging layers. Methods are reached through `apply(..., method="name")`.

    With `patch_embed = encoder` it is the encoder-based baseline: vision tower and projector take
    the patch embedding's place, and clips are bare. `lora` is given while a model trains with it.
    """

    config: ModelConfig
    lora: LoraConfig | None = None

    def setup(self):
        self.patch_embed = visual_embed(self.config)
        self.decoder = Qwen2(self.config, self.lora)

    def __call__(
        self,
        patches_BxNxK: jax.Array,
        layout: TokenLayout,
        *,
        merging: bool = False,
        buckets: tuple[int, ...] = (),
        rope_length: int = 0,
    ) -> ElvaOutput:
        """The whole forward pass up to the final norm.

        Args:
          patches_BxNxK: uint8 pixels of the patches, K = P * P * 3.
          layout: fields [B, S].
          merging: whether the config's merging layers act; static.
          buckets: per merging layer, the static token count behind it, 0 for the length before it; empty: no compaction.
          rope_length: the length that dynamic RoPE scaling counts with; 0: the decoder's `max_position`.

        Raises:
          ConfigError: not one bucket a merging layer.
        """
        rules = merging_of(self.config).layers if merging else ()
        if buckets and len(buckets) != len(rules):
            raise ConfigError(
                f"merge_buckets: {len(buckets)} for {len(rules)} merging layers; give one each, or none"
            )
        buckets = buckets or (0,) * len(rules)
        layout = TokenLayout(*(jnp.asarray(field) for field in layout))
        batch, length = layout.kind.shape
        x = self.embed(patches_BxNxK, layout)
        size = jnp.ones((batch, length), jnp.float32)
        survivor = jnp.where(layout.kind != Kind.PAD, jnp.arange(length, dtype=jnp.int32)[None], -1)
        merges: list[merging_ops.MergeStats] = []
        for piece in layer_blocks(self.config, merging=merging):
            if piece.merge is not None:
                merged = merge_batch(
                    self.config, x, layout, size, piece.merge, buckets[piece.merge] or None
                )
                survivor = jax.vmap(merging_ops.compose)(survivor, merged.survivor)
                x, layout, size = merged.x, merged.layout, merged.size
                merges.append(merged.stats)
            x = self.decoder.layers(
                x,
                layout.position,
                layout.segment,
                piece.start,
                piece.stop,
                turn_BxS=layout.turn,
                rope_length=rope_length,
            )
        return ElvaOutput(self.decoder.final_norm(x), layout, size, survivor, tuple(merges))

    def embed(self, patches_BxNxK: jax.Array, layout: TokenLayout) -> jax.Array:
        """Input embeddings [B, S, D]: text from the table, visual tokens from the patch embedding, zeros at padding."""
        x = input_embeddings(self.decoder.embed, self.patch_embed(patches_BxNxK, layout), layout)
        return nn.with_logical_constraint(x, ("batch", "seq", None))

    def final_norm(self, x_BxSxD: jax.Array) -> jax.Array:
        """The final norm: what `head` takes."""
        return self.decoder.final_norm(x_BxSxD)

    def head(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D] behind the final norm."""
        return self.decoder.head(hidden)
