"""Compares our FLOPs with XLA's cost analysis of compiled programs; allocates and runs nothing.

XLA counts the body of a loop once, so layers are compiled one by one; those of a block are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.inference.kv_cache import PrefixCache, SuffixCache, grouped_attention
from elva_jax.models import flops
from elva_jax.models.elva import merging_of, with_merging
from elva_jax.models.patch_embed import PatchEmbed
from elva_jax.models.qwen2 import DecoderLayer, Qwen2
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.ops.attention import packed_attention
from elva_jax.ops.merging import NO_MERGING, MergeLayer, Merging, merge
from elva_jax.tools.analysis import prompt_flops
from elva_jax.tools.analysis.parameters import abstract_parameters
from elva_jax.video.layout import TokenLayout

SLOTS = 256  # tokens of question and answer after a prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """The FLOPs of a part of the model, by our count and by XLA's."""

    program: str
    ours: float  # FLOPs
    xla: float  # FLOPs

    @property
    def deviation(self) -> float:
        """Of our count from XLA's, as a share."""
        return self.ours / self.xla - 1


def check(config: ModelConfig, tower: TeacherConfig, length: int = 1024) -> list[Check]:
    """Checks all parts of a model and of the baseline, in float32 on prefixes of `length` tokens.

    The decoder is checked without merging, and with two merging layers that each leave half of the
    tokens. More than 1024 tokens cannot be compared: attention then loops over tiles, and XLA
    counts the body of a loop once.
    """
    layers = config.num_layers
    merging = Merging((MergeLayer(layers // 3), MergeLayer(2 * layers // 3)))
    config = with_merging(config, merging)
    lengths = (length, length // 2, length // 4)
    return [
        check_patch_embedding(config, length, length),
        check_prefill(config, (length,)),
        check_prefill(config, lengths),
        check_merging(config, length),
        check_decode(config, lengths),
        check_vision(tower),
    ]


def program_flops(function: Callable, *arguments: Any) -> float:
    """XLA's count for the CPU program of `function` on trees of `jax.ShapeDtypeStruct`."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        lowered = jax.jit(function).lower(*arguments)
        # XLA's default, which XLA_FLAGS may have changed: what is fused changes the count.
        cost: Any = lowered.compile({"xla_cpu_use_fusion_emitters": True}).cost_analysis()
        return float(cost["flops"])


def check_patch_embedding(config: ModelConfig, patches: int, tokens: int) -> Check:
    """The patch embedding of one row."""
    module = PatchEmbed(config)
    arguments = (_shape(1, patches, config.patch_size**2 * 3, dtype=jnp.uint8), _layout(1, tokens))
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *arguments))
    counted = program_flops(module.apply, params, *arguments)
    return Check(
        program=f"patch embedding of {patches} patches",
        ours=flops.patch_embedding(config, patches, tokens),
        xla=counted,
    )


def check_prefill(config: ModelConfig, lengths: Sequence[int]) -> Check:
    """The decoder without its merging layers, on one prefix of these lengths.

    `lengths` are those of `prompt_flops.blocks_with_lengths`.
    """
    counted = 0.0
    for block, length in prompt_flops.blocks_with_lengths(config, lengths):
        last = block.stop == config.num_layers
        counted += (block.stop - block.start - last) * _prefill_layer(config, length, last=False)
        counted += last * _prefill_layer(config, length, last=True)
    ours = prompt_flops.prefill(config, lengths)
    return Check(
        program=f"prefill of {_steps(lengths)} tokens",
        ours=ours["linear"] + ours["attention"],
        xla=counted,
    )


def _prefill_layer(decoder: ModelConfig, length: int, *, last: bool) -> float:
    """One layer; of the last one, inference needs keys and values only, and XLA drops the rest."""

    def run(params, x, angle, segment):
        attend = partial(packed_attention, single=True, segment=segment, implementation="xla")
        x, keys_values = DecoderLayer(decoder).apply({"params": params}, x, angle, angle, attend)
        return keys_values if last else (x, keys_values)

    return program_flops(
        run, *_layer_arguments(decoder, length), _shape(1, length, dtype=jnp.int32)
    )


def check_decode(config: ModelConfig, lengths: Sequence[int]) -> Check:
    """One token and its logits after a prefix of these lengths, with `SLOTS` slots for text."""
    counted = sum(
        (block.stop - block.start) * _decode_layer(config, length)
        for block, length in prompt_flops.blocks_with_lengths(config, lengths)
    )
    one_layer = dataclasses.replace(with_merging(config, NO_MERGING), num_layers=1)
    head = partial(Qwen2(one_layer).apply, method="head")
    params = {"params": abstract_parameters(one_layer)["decoder"]}
    counted += program_flops(head, params, _shape(1, 1, config.hidden_size))
    ours = prompt_flops.continuation(config, lengths, 1, SLOTS) + flops.head(config)
    program = f"decode of a token after {_steps(lengths)}"
    return Check(program=program, ours=ours, xla=counted)


def _decode_layer(decoder: ModelConfig, length: int) -> float:
    past = _shape(1, decoder.num_kv_heads, length, decoder.head_dim)
    own = _shape(1, decoder.num_kv_heads, 1, SLOTS, decoder.head_dim)

    def run(params, x, angle, prefix, suffix, mask, slot):
        written = []

        def attend(q, k, v):
            out, new = grouped_attention(q, k, v, prefix, suffix, mask, slot)
            written.append(new)
            return out

        return DecoderLayer(decoder).apply({"params": params}, x, angle, angle, attend)[0], written

    prefix = PrefixCache(past, past, _shape(1, length, dtype=jnp.bool_))
    cache = prefix, SuffixCache(own, own)
    mask = _shape(1, 1, 1, SLOTS, dtype=jnp.bool_)
    return program_flops(run, *_layer_arguments(decoder, 1), *cache, mask, _shape(dtype=jnp.int32))


def check_merging(config: ModelConfig, length: int) -> Check:
    """The config's first merging layer on one row."""
    rule, width = merging_of(config).layers[0], config.hidden_size
    counted = program_flops(
        partial(merge, rule=rule), _shape(length, width), _layout(length), _shape(length)
    )
    ours = prompt_flops.merging_layer(width, length)
    return Check(program=f"merging layer on {length} tokens", ours=ours, xla=counted)


def check_vision(tower: TeacherConfig) -> Check:
    """The penultimate features of one image, from a tower of two layers: more would be a loop."""
    module = SiglipVision(dataclasses.replace(tower, num_layers=2))
    pixels = _shape(1, tower.image_size, tower.image_size, 3)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), pixels))

    def penultimate(params, pixels):
        features: Any = module.apply(params, pixels)
        return features.penultimate

    return Check(
        program="vision tower, embedding and one layer",
        ours=flops.vision_tower(tower, 1, 1),
        xla=program_flops(penultimate, params, pixels),
    )


def _shape(*dims: int, dtype: Any = jnp.float32) -> Any:  # a stand-in for arrays
    return jax.ShapeDtypeStruct(dims, dtype)


def _layout(*dims: int) -> TokenLayout:
    """The shapes of a layout [*dims]."""
    return TokenLayout(*map(jax.ShapeDtypeStruct, TokenLayout.shapes(*dims), TokenLayout.dtypes()))


def _layer_arguments(decoder: ModelConfig, length: int) -> tuple[Any, ...]:
    """Parameters of one layer, hidden states [1, S, D] and angles [1, S, Dh / 2]."""
    x, angle = _shape(1, length, decoder.hidden_size), _shape(1, length, decoder.head_dim // 2)
    init = partial(DecoderLayer(decoder).init, attend=lambda q, k, v: q)
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), x, angle, angle))["params"], x, angle


def _steps(lengths: Sequence[int]) -> str:
    return " / ".join(map(str, lengths))
