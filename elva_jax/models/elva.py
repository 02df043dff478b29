"""The whole model: patches and text to hidden states, with tokens merging between layer blocks.

    patches -- patch_embed --+
                             +--> x --> layers 0..k-1 --> merge --> layers k..m-1 --> merge --> ...
    text ids -- embed_tokens-+    [B, S, D]                         [B, C1, D]

    ... --> layers m..L-1 --> final norm --> hidden [B, C, D] --> head --> logits [B, C, V]
            [B, C2, D]

Where tokens merge is configuration: it changes no parameter, since all layers are one stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Num

from elva_jax.config.schema import LoraConfig, ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models.encoder_embed import EncoderEmbed
from elva_jax.models.merv.embed import MervEmbed
from elva_jax.models.patch_embed import PatchEmbed
from elva_jax.models.qwen2 import Qwen2
from elva_jax.ops import merging as merging_ops
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import Kind, TokenLayout


class ElvaOutput(NamedTuple):
    """The result of a forward pass; C is the last bucket, or S without one."""

    hidden: Float[Array, "B C D"]  # after the final norm
    layout: TokenLayout  # [B, C] of the surviving tokens
    size: Float32[Array, "B C"]  # how many original tokens each stands for
    survivor: Int32[Array, "B S"]  # where every original token is now; -1 at padding
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
        tuple(merging_ops.MergeLayer(*layer) for layer in layers),
        config.merge_lines,
        config.merge_survivor,
    )


def with_merging(config: ModelConfig, merging: merging_ops.Merging) -> ModelConfig:
    """The same model with other merging layers."""
    policies: Any = tuple(layer.policy for layer in merging.layers)  # functions among them, too
    return dataclasses.replace(
        config,
        merge_layers=tuple(layer.before_layer for layer in merging.layers),
        merge_policies=policies,
        merge_thresholds=tuple(layer.threshold for layer in merging.layers),
        merge_ratios=tuple(layer.ratio for layer in merging.layers),
        merge_lines=merging.merge_lines,
        merge_survivor=merging.survivor,
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
    x: Float[Array, "B S D"],
    layout: TokenLayout,
    size: Float32[Array, "B S"],
    index: int,
    bucket: int | None = None,
) -> merging_ops.Merged:
    """The config's merging layer `index` on a batch; every field has a leading batch axis."""
    x = nn.with_logical_constraint(x, ("batch", None, None))  # sorting needs whole rows
    merging = merging_of(config)

    one = partial(
        merging_ops.merge,
        rule=merging.layers[index],
        merge_lines=merging.merge_lines,
        survivor=merging.survivor,
        bucket=bucket,
    )
    merged = jax.vmap(one)(x, layout, size)
    return merged._replace(x=nn.with_logical_constraint(merged.x, ("batch", "seq", None)))


def visual_embed(config: ModelConfig) -> nn.Module:
    """The module that turns patches and a layout into visual tokens [B, S, D]."""
    if config.patch_embed == "merv":
        return MervEmbed(config)
    return EncoderEmbed(config) if config.patch_embed == "encoder" else PatchEmbed(config)


def input_embeddings(
    embed: Callable[[jax.Array], jax.Array], visual: Float[Array, "B S D"], layout: TokenLayout
) -> Float[Array, "B S D"]:
    """Text tokens, by `embed` from their vocabulary ids, among the visual tokens."""
    is_text = layout.kind == Kind.TEXT
    return jnp.where(is_text[..., None], embed(jnp.where(is_text, layout.token_id, 0)), visual)


@lru_cache(maxsize=64)
def abstract_params(config: ModelConfig) -> Any:
    """The parameters of `Elva` as boxed `jax.ShapeDtypeStruct`s, traced once per configuration."""
    return jax.eval_shape(Elva(config).init, jax.random.key(0), *dummy_inputs(config))["params"]


def dummy_inputs(config: ModelConfig) -> tuple[np.ndarray, TokenLayout]:
    """The smallest arguments for `Elva(config).init`: one row of patches, two tokens of padding."""
    patches = np.zeros((1, config.frame_patches, config.patch_values), np.uint8)
    return patches, TokenLayout.padding(1, 2)


class Elva(nn.Module):
    """ELVA: patch embedding, Qwen2 decoder and merging layers.

    With `patch_embed = encoder` it is the encoder-based baseline: vision tower and projector take
    the patch embedding's place, and clips are bare; with `merv`, several towers do. `lora` is given
    while a model trains with it.
    Methods are called through `apply(..., method="name")`.
    """

    config: ModelConfig
    lora: LoraConfig | None = None

    def setup(self) -> None:
        """Declares the two modules."""
        self.patch_embed = visual_embed(self.config)
        self.decoder = Qwen2(self.config, self.lora)

    def __call__(
        self,
        patches: Num[AnyArray, "B N K"],
        layout: TokenLayout,
        *,
        merging: bool = False,
        buckets: tuple[int, ...] = (),
        rope_length: int = 0,
    ) -> ElvaOutput:
        """The whole forward pass up to the final norm.

        Args:
          patches: uint8 pixels, K = P * P * 3.
          layout: fields [B, S].
          merging: whether the config's merging layers act; static.
          buckets: for each merging layer the static number of tokens after it, 0 for as many as
            before it; empty: no compaction.
          rope_length: the length that dynamic RoPE scaling uses; 0: the model's `max_position`.

        Raises:
          ConfigError: another number of buckets than of merging layers.
        """
        rules = merging_of(self.config).layers if merging else ()
        if buckets and len(buckets) != len(rules):
            raise ConfigError(
                f"merge_buckets: {len(buckets)} for {len(rules)} merging layers;"
                " give one each, or none"
            )
        buckets = buckets or (0,) * len(rules)
        layout = jax.tree.map(jnp.asarray, layout)
        batch, length = layout.kind.shape
        x = self.embed(patches, layout)
        size = jnp.ones((batch, length), jnp.float32)
        survivor = jnp.where(layout.kind != Kind.PAD, jnp.arange(length, dtype=jnp.int32)[None], -1)
        merges: list[merging_ops.MergeStats] = []
        for block in layer_blocks(self.config, merging=merging):
            if block.merge is not None:
                bucket = buckets[block.merge] or None
                merged = merge_batch(self.config, x, layout, size, block.merge, bucket)
                survivor = jax.vmap(merging_ops.compose)(survivor, merged.survivor)
                x, layout, size = merged.x, merged.layout, merged.size
                merges.append(merged.stats)
            x = self.decoder.layers(
                x,
                layout.position,
                layout.segment,
                block.start,
                block.stop,
                turn=layout.turn,
                frame=layout.frame,
                rope_length=rope_length,
            )
        return ElvaOutput(self.decoder.final_norm(x), layout, size, survivor, tuple(merges))

    def embed(self, patches: Num[AnyArray, "B N K"], layout: TokenLayout) -> Float[Array, "B S D"]:
        """The decoder's input: text and visual tokens, zeros at padding."""
        x = input_embeddings(self.decoder.embed, self.patch_embed(patches, layout), layout)
        return nn.with_logical_constraint(x, ("batch", "seq", None))

    def final_norm(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Hidden states as `head` takes them."""
        return self.decoder.final_norm(x)

    def head(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
        """Logits of hidden states after the final norm."""
        return self.decoder.head(hidden)
