"""Estimates from shapes alone: attention, cuDNN's mask, memory traffic, and activations.

    attention   causal half of a square per layer: S (S + 1) / 2 pairs of query and key
    mask        3 bytes * S^2 per row
    traffic     passes * (2 bytes * tokens * widths + weights) + optimizer
    activations hidden states of all layers + the largest working set

`activations` is independent of the compiled program, whose memory it checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp

from elva_jax.config.schema import ModelConfig
from elva_jax.models import flops
from elva_jax.models.towers.common import head_dim_of
from elva_jax.ops.attention import choose_implementation
from elva_jax.parallel.mesh import BATCH_AXES
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.losses import CHUNK_LOGITS

# Matrix products relative to the two of attention's forward pass (scores and values). The backward
# pass has five, because it computes the scores again.
BACKWARD_PRODUCTS = 5 / 2
KEEPS_ATTENTION = ("none", "names")  # remat policies that keep the result of attention


def rows(task: ModelTask, mesh: Mapping[str, int]) -> tuple[int, int]:
    """Rows of one micro-batch on one device, and micro-batches per step."""
    accumulate = task.stage.optimizer.accumulate
    parts = math.prod(mesh[axis] for axis in BATCH_AXES) * accumulate
    return task.stage.batch_size // parts, accumulate


def clips(task: ModelTask) -> int:
    """Videos of a row, which a teacher of clips sees one by one, if all have the stage's frames."""
    data = task.stage.data
    return max(data.max_frames // data.num_frames, 1)


def attention_flops(task: ModelTask, mesh: Mapping[str, int]) -> float:
    """FLOPs of attention in one device's step, which the compiled stand-in leaves out.

    0 if there is no stand-in: the compiled program then has the products.
    """
    if not _by_stand_in(task, mesh):
        return 0.0
    micro, times = rows(task, mesh)
    if not task.decoder_pieces():
        passes = task.tower_passes + BACKWARD_PRODUCTS
        return passes * task.tower_attention * micro * times
    decoder = _decoder(task)
    forwards = 1 + (decoder.remat not in KEEPS_ATTENTION) + BACKWARD_PRODUCTS
    each = sum(
        layers * flops.layer_attention(decoder, length * (length + 1) / 2)
        for layers, length in task.decoder_pieces()
    )
    return forwards * each * micro * times / _head_shards(decoder, mesh)


def _by_stand_in(task: ModelTask, mesh: Mapping[str, int]) -> bool:
    """Whether a stand-in takes the place of attention, which cuDNN's kernel will compute."""
    decoder, tower, parts = _decoder(task), task.config.teacher, mesh["context"]
    if not task.decoder_pieces():
        return _on_gpu(head_dim_of(tower), tower.dtype) == "cudnn"
    if decoder.frame_attention == "bidirectional":
        return False
    return _on_gpu(decoder.head_dim, decoder.dtype, decoder.attention, parts) == "cudnn"


def _on_gpu(head_dim: int, dtype: str, implementation: str = "auto", parts: int = 1) -> str:
    return choose_implementation(head_dim, dtype, implementation, parts, backend="gpu").name


def _decoder(task: ModelTask) -> ModelConfig:
    return task.config.model


def _head_shards(decoder: ModelConfig, mesh: Mapping[str, int]) -> int:
    """The number of devices that share the heads of a row."""
    return mesh["tensor"] if decoder.num_heads % mesh["tensor"] == 0 else 1


def mask_bytes(task: ModelTask, mesh: Mapping[str, int]) -> int:
    """Bytes of the mask of packed examples for cuDNN's kernel.

    The kernel takes a square of booleans and one of 16-bit numbers per row.
    """
    if not _by_stand_in(task, mesh):
        return 0
    micro, _ = rows(task, mesh)
    longest = max((length for _, length in task.decoder_pieces()), default=0)
    return micro * longest**2 * (1 + 2)


def activations(task: ModelTask, mesh: Mapping[str, int]) -> int:
    """Bytes of one device's activations at the peak of the backward pass under remat = full.

    Counts one hidden state per layer and token, and a copy of the layers' weights and gradients if
    merging cuts their stack. To these it adds the larger of two working sets:

    - the backward pass of one layer: gate, up, their product and the gradients of these three;
      queries, the result of attention and their gradients; four hidden states in 32 bits; weights
      and gradients of the layer; the gradient of the head,
    - the head: three times the logits of a chunk, its table twice, and its gradient.

    The teacher is left out.
    """
    decoder, tensor = _decoder(task), mesh["tensor"]
    micro, _ = rows(task, mesh)
    pieces = task.decoder_pieces()
    kept = sum(layers * length for layers, length in pieces) * 2 * decoder.hidden_size
    longest = max(length for _, length in pieces)
    inner = 6 * 2 * decoder.intermediate_size // tensor
    heads = 4 * 2 * decoder.num_heads * decoder.head_dim // _head_shards(decoder, mesh)
    layer = longest * (inner + heads + 4 * 4 * decoder.hidden_size)
    weights = 2 * 2 * flops.layer_weights(decoder) // tensor
    table = decoder.hidden_size * decoder.vocab_size // tensor
    chunk_tokens = min(max(CHUNK_LOGITS // decoder.vocab_size, 64), pieces[-1][1])
    chunk = chunk_tokens * decoder.vocab_size // tensor
    optimizer = task.stage.optimizer
    width = 4 + 4
    if optimizer.lora.rank or optimizer.freeze:
        width = jnp.dtype(optimizer.frozen_dtype).itemsize
    stack = 0
    if len(pieces) > 1:
        layers_bytes = decoder.num_layers * flops.layer_weights(decoder) * width
        stack = layers_bytes // (mesh["fsdp"] * tensor)
    layer_set = micro * layer + weights + 4 * table
    head_set = 3 * 4 * micro * chunk + (4 + 2 + 4) * table
    return micro * kept + stack + max(layer_set, head_set)


def memory_traffic(
    task: ModelTask, mesh: Mapping[str, int], trained: int, parameters: int
) -> float:
    """Bytes that one device moves to and from its memory in a step.

    Assumes that XLA fuses all elementwise operations.

    Args:
      task: of the stage.
      mesh: sizes of the axes.
      trained: bytes of this device's share of the trained parameters.
      parameters: bytes of this device's share of all parameters.
    """
    pieces = task.decoder_pieces()
    if not pieces:
        return 0.0
    decoder = _decoder(task)
    d, inner = decoder.hidden_size, decoder.intermediate_size
    heads = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    micro, times = rows(task, mesh)
    passes = 3 + (decoder.remat != "none")
    token = 2 * (10 * d + (4 * heads + 6 * inner) / mesh["tensor"])
    # XLA's attention writes and reads its scores in 32 bits before and after the softmax; cuDNN's
    # kernel does not.
    heads_here = decoder.num_heads / _head_shards(decoder, mesh)
    score = 0.0 if _by_stand_in(task, mesh) else 4 * 4 * heads_here
    tokens = sum(layers * length * (token + length * score) for layers, length in pieces)
    through_layers = passes * micro * tokens / mesh["context"]
    # Gathered weights are written and read. The optimizer reads four numbers per parameter and
    # writes three; a micro-batch adds its gradient.
    weights = passes * 2 * 2 * flops.layer_weights(decoder) * decoder.num_layers / mesh["tensor"]
    return times * (through_layers + weights + 3 * trained) + 7 * trained + parameters
