"""What a plan counts from shapes alone: attention's work, what cuDNN's mask takes, traffic to memory, and activations once more.

`activations` knows nothing of the compiled program: the two must agree, or one of them is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp
from ml_collections import ConfigDict

from elva_jax.config.schema import ModelConfig
from elva_jax.models import flops
from elva_jax.models.build import config_from_dict
from elva_jax.parallel.mesh import BATCH_AXES
from elva_jax.tasks.registry import make_task
from elva_jax.tasks.video_llm import CHUNK_LOGITS

# Matrix products of the two of attention's forward pass: scores and values; backward five, for the scores are made again.
BACKWARD_PRODUCTS = 5 / 2
KEEPS_ATTENTION = ("none", "names")  # remat policies under which attention's result is kept


def lengths(config: ConfigDict, name: str) -> list[tuple[int, int]]:
    """(decoder layers, tokens) of each piece of the decoder, as a stage's step runs it."""
    return make_task(config, name).decoder_pieces()


def rows(config: ConfigDict, name: str, mesh: Mapping[str, int]) -> tuple[int, int]:
    """Rows of one micro-batch on one device, and micro-batches a step."""
    stage = config.stages[name]
    parts = math.prod(mesh[axis] for axis in BATCH_AXES) * stage.optimizer.accumulate
    return stage.batch_size // parts, stage.optimizer.accumulate


def attention_flops(config: ConfigDict, name: str, mesh: Mapping[str, int]) -> float:
    """Attention's products of one device's step, which the compiled stand-in leaves out: the causal half of every square.

    Nothing where sequences are split: the compiled program has them then.
    """
    if mesh["context"] > 1:
        return 0.0
    decoder = config_from_dict(config.model, config.teacher)
    forwards = 1 + (config.model.remat not in KEEPS_ATTENTION) + BACKWARD_PRODUCTS
    each = sum(
        layers * flops.layer_attention(decoder, length * (length + 1) / 2)
        for layers, length in lengths(config, name)
    )
    micro, times = rows(config, name, mesh)
    return forwards * each * micro * times / _shares(decoder, mesh)


def _shares(decoder: ModelConfig, mesh: Mapping[str, int]) -> int:
    """Devices among which the heads of one row are split."""
    return mesh["tensor"] if decoder.num_heads % mesh["tensor"] == 0 else 1


def mask_bytes(config: ConfigDict, name: str, mesh: Mapping[str, int]) -> int:
    """What cuDNN's kernel is told about packed examples: a square of booleans and one of 16-bit numbers for each row."""
    if mesh["context"] > 1:
        return 0
    micro, _ = rows(config, name, mesh)
    longest = max((length for _, length in lengths(config, name)), default=0)
    return micro * longest**2 * (1 + 2)


def activations(config: ConfigDict, name: str, mesh: Mapping[str, int]) -> int:
    """Bytes of one device's activations at the height of the backward pass under remat = full, by hand.

    One hidden state a layer and token; a copy of the layers' weights, and of their gradients, where merging cuts their stack; and what the
    backward pass of one layer works on (gate, up, their product and the gradients of these three, queries, attention's result and theirs,
    four hidden states in 32 bits, the layer's weights and their gradients) with the head's gradient, or what the head does if that is more:
    three times the logits of a chunk, its table twice and the gradient. The teacher is left out.
    """
    decoder = config_from_dict(config.model, config.teacher)
    micro, _ = rows(config, name, mesh)
    pieces = lengths(config, name)
    kept = sum(layers * length for layers, length in pieces) * 2 * decoder.hidden_size
    longest = max(length for _, length in pieces)
    inner = 6 * 2 * decoder.intermediate_size // mesh["tensor"]
    heads = 4 * 2 * decoder.num_heads * decoder.head_dim // _shares(decoder, mesh)
    layer = longest * (inner + heads + 4 * 4 * decoder.hidden_size)
    weights = 2 * 2 * flops.layer_weights(decoder) // mesh["tensor"]
    table = decoder.hidden_size * decoder.vocab_size // mesh["tensor"]
    chunk = (
        min(max(CHUNK_LOGITS // decoder.vocab_size, 64), pieces[-1][1])
        * decoder.vocab_size
        // mesh["tensor"]
    )
    optimizer = config.stages[name].optimizer
    width = (
        jnp.dtype(optimizer.frozen_dtype).itemsize
        if optimizer.lora.rank or optimizer.freeze
        else 4 + 4
    )
    stack = len(pieces) > 1 and decoder.num_layers * flops.layer_weights(decoder) * width // (
        mesh["fsdp"] * mesh["tensor"]
    )
    return (
        micro * kept
        + stack
        + max(micro * layer + weights + 4 * table, 3 * 4 * micro * chunk + (4 + 2 + 4) * table)
    )


def memory_traffic(
    config: ConfigDict, name: str, mesh: Mapping[str, int], trained: int, parameters: int
) -> float:
    """Bytes that one device moves to and from its memory in a step, as if XLA fused all that is element by element.

    Args:
      config: the run's.
      name: its stage.
      mesh: sizes of the axes.
      trained: bytes of this device's share of the parameters that are trained.
      parameters: and of all.
    """
    if not lengths(config, name):
        return 0.0
    decoder = config_from_dict(config.model, config.teacher)
    d, inner, heads = (
        decoder.hidden_size,
        decoder.intermediate_size,
        (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim,
    )
    micro, times = rows(config, name, mesh)
    passes = 3 + (config.model.remat != "none")
    token = 2 * (10 * d + (4 * heads + 6 * inner) / mesh["tensor"])
    # XLA's attention writes and reads its scores, in 32 bits, before and behind the softmax; cuDNN's kernel does not.
    score = 4 * 4 * decoder.num_heads / _shares(decoder, mesh) * (mesh["context"] > 1)
    through_layers = (
        passes
        * micro
        * sum(
            layers * length * (token + length * score) for layers, length in lengths(config, name)
        )
    )
    through_layers /= mesh["context"]
    # Gathered weights are written and read; the optimiser reads four numbers a parameter and writes three, a micro-batch adds its gradient.
    weights = passes * 2 * 2 * flops.layer_weights(decoder) * decoder.num_layers / mesh["tensor"]
    return times * (through_layers + weights + 3 * trained) + 7 * trained + parameters
