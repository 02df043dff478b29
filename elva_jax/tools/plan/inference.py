"""The memory that answering takes, by purpose, from shapes and compiled programs.

    weights       shapes of `inference.params.Weights`, quantized or not
    caches        keys and values of every layer: the prefix's C slots, the suffix's T slots
    activations   the peak of embedding, merging, a decoder layer and decoding beyond both

Each program is the one that answers, compiled for a CPU from shapes alone, as `plan.program` does
it: in float16, with the memory of cuDNN's attention, and never run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import ModelConfig
from elva_jax.inference import params
from elva_jax.inference.batching import grid_length
from elva_jax.inference.chunked_prefill import chunk_for, chunk_layer
from elva_jax.inference.kv_cache import PrefixCache, append_tokens, empty_suffix
from elva_jax.inference.params import Weights, unstack_layers
from elva_jax.inference.prefill import LayerInputs, apply_layer
from elva_jax.inference.quantization import SCHEMES, quantize_weights, weights_bytes
from elva_jax.models.elva import Elva, dummy_inputs, merge_batch, with_merging
from elva_jax.ops.attention import replaced_by
from elva_jax.ops.attention.cached import Cached
from elva_jax.ops.merging import NO_MERGING
from elva_jax.ops.similarity import similarity_of
from elva_jax.tools.plan.attention import fused_shapes
from elva_jax.tools.plan.inference_case import QUESTION, Case
from elva_jax.tools.plan.program import COMPILER
from elva_jax.video.layout import TokenLayout

DECODER_LAYERS = 2  # of the compiled decoding program: temporaries do not grow with layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    weights: int
    prefix: int
    suffix: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.prefix + self.suffix + self.activations

    def to_dict(self) -> dict[str, int]:
        """The parts and their sum."""
        return dataclasses.asdict(self) | {"total": self.total}


def memory_of(case: Case) -> Memory:
    """The memory of a case; its programs are compiled unless they are known already."""
    weights, prefix, suffix = weight_bytes(case), prefix_bytes(case), suffix_bytes(case)
    if chunk_for(case.length, None) is None:
        activations = _peak(case) - prefix - suffix
    else:
        activations = chunk_activations(case, case.blocks[0][1])
    return Memory(weights=weights, prefix=prefix, suffix=suffix, activations=activations)


def weight_bytes(case: Case) -> int:
    """Bytes of the weights."""
    return weights_bytes(weight_shapes(case.model, case.weights))


@cache
def weight_shapes(model: ModelConfig, weights: str) -> Weights:
    """The shapes of `Weights`, quantized where `weights` is int8 or int4."""

    def make(key: jax.Array) -> Weights:
        variables = Elva(model).init(key, *dummy_inputs(model))
        made = unstack_layers(model, nn.meta.unbox(variables)["params"])
        return quantize_weights(made, weights) if weights in SCHEMES else made

    return jax.eval_shape(make, jax.random.key(0))


def prefix_bytes(case: Case) -> int:
    """Bytes of the prefix cache of all layers."""
    return sum(layers * _layer_cache(case, length) for layers, length in case.blocks)


def _layer_cache(case: Case, length: int) -> int:
    width = case.model.num_kv_heads * case.model.head_dim
    return case.rows * length * (2 * width * jnp.dtype(case.model.dtype).itemsize + 1)


def suffix_bytes(case: Case) -> int:
    """Bytes of the suffix cache of all layers."""
    model = case.model
    width = model.num_kv_heads * model.head_dim
    size = 2 * width * jnp.dtype(model.dtype).itemsize
    return model.num_layers * case.rows * case.slots * size


def chunk_activations(case: Case, length: int) -> int:
    """The most bytes beside weights and caches where a prompt is prefilled in chunks.

    Hidden states, layouts and the choice of pairs are on the host then. Of the prompt's length, the
    question alone depends on it, up to the tiles in which it attends to the caches.

    Args:
      case: the model and its rows; its own length does not matter.
      length: tokens of the longest cache, more than are prefilled in one piece.
    """
    model, rows, chunk = _compiled_model(case.model), case.rows, chunk_for(length, None)
    assert chunk is not None
    hidden = rows * chunk * model.hidden_size * jnp.dtype(model.dtype).itemsize
    one, widened = weights_bytes(_layout(rows, chunk)) + hidden, _widened(case)
    layer = one + widened + _chunk_layer(model, rows, chunk, length)
    prefill = max(one + _embedding(model, rows, chunk), layer, _cosines(model, rows, chunk))
    # The suffix cache is made after prefill.
    answers = widened + _decoding(model, rows, length, case.slots)
    return max(prefill - suffix_bytes(case), answers)


def _peak(case: Case) -> int:
    """The most bytes beside the weights at any time of an answer, prefilled in one piece."""
    model = _compiled_model(case.model)
    itemsize = jnp.dtype(model.dtype).itemsize
    rows, length = case.rows, case.length
    layout = weights_bytes(_layout(rows, length))
    widened = _widened(case)
    peaks, held = [_embedding(model, rows, length) + layout], 0
    before = length
    for number, (layers, tokens) in enumerate(case.blocks):
        hidden = rows * tokens * model.hidden_size * itemsize
        has_merge = case.merging and len(case.blocks) - number <= len(model.merge_layers)
        if has_merge:
            entering = rows * before * model.hidden_size * itemsize
            peaks.append(held + layout + entering + _merging(model, rows, before))
        held += layers * _layer_cache(case, tokens)
        peaks.append(held + layout + hidden + widened + _layer(model, rows, tokens))
        before = tokens
    caches = prefix_bytes(case) + suffix_bytes(case)
    answers = _decoding(model, rows, case.blocks[0][1], case.slots)
    return max(*peaks, caches + widened + answers)


def _widened(case: Case) -> int:
    """Bytes of the largest matrix of a layer in the compute type, where it is quantized.

    XLA widens it within the product or before it, as its autotuner chooses.
    """
    if case.weights not in SCHEMES:
        return 0
    itemsize = jnp.dtype(case.model.dtype).itemsize
    return case.model.hidden_size * case.model.intermediate_size * itemsize


def _compiled_model(model: ModelConfig) -> ModelConfig:
    """The model in a type that the CPU backend does not widen, with as many bytes."""
    dtype: Any = "float16" if model.dtype == "bfloat16" else model.dtype
    return dataclasses.replace(model, dtype=dtype)


def _temporaries(function: Callable[..., Any], *shapes: Any, **options: Any) -> int:
    """Bytes beside a program's arguments, with its outputs."""
    with replaced_by(fused_shapes):
        lowered = jax.jit(function, **options).lower(*shapes)
    options_of: Any = COMPILER
    memory: Any = lowered.compile(compiler_options=options_of).memory_analysis()
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + extra


def _shape(*dims: int, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(dims, jnp.dtype(dtype))


def _layout(rows: int, length: int) -> TokenLayout:
    fields = zip(TokenLayout.shapes(rows, length), TokenLayout.dtypes(), strict=True)
    layout: Any = [_shape(*dims, dtype=dtype) for dims, dtype in fields]
    return TokenLayout(*layout)


@cache
def _embedding(model: ModelConfig, rows: int, length: int) -> int:
    """Of the patch embedding, with the patches."""
    frame = model.frame_patches
    count = length if frame == 1 else frame * grid_length(-(-length // frame), 1)
    patches = _shape(rows, count, model.patch_values, dtype=np.uint8)
    weights = weight_shapes(model, model.dtype)._replace(layers=())
    function = partial(params.embed, model)
    return weights_bytes(patches) + _temporaries(function, weights, patches, _layout(rows, length))


def _layer_shapes(model: ModelConfig, rows: int, tokens: int) -> tuple[Any, LayerInputs]:
    """The hidden states that a layer reads, and what layers share."""
    x = _shape(rows, tokens, model.hidden_size, dtype=model.dtype)
    angle = _shape(rows, tokens, model.head_dim // 2, dtype=np.float32)
    ids = _shape(rows, tokens, dtype=np.int32)
    reach = ids if model.frame_attention == "bidirectional" else None
    return x, LayerInputs(angle, angle, ids, reach)


@cache
def _layer(model: ModelConfig, rows: int, tokens: int) -> int:
    """Of one decoder layer beyond its input and its cache."""
    plain = with_merging(model, NO_MERGING)
    x, inputs = _layer_shapes(model, rows, tokens)
    layer = weight_shapes(model, model.dtype).layers[0]
    function = partial(apply_layer, plain)
    found = _temporaries(function, layer, x, inputs, donate_argnums=1)
    caches = jax.eval_shape(function, layer, x, inputs)[1]
    return found - weights_bytes(caches) + weights_bytes(inputs)


@cache
def _chunk_layer(model: ModelConfig, rows: int, chunk: int, length: int) -> int:
    """Of one decoder layer on a chunk beyond its input and its cache of `length` tokens."""
    plain = with_merging(model, NO_MERGING)
    x, inputs = _layer_shapes(model, rows, chunk)
    key = _shape(rows, model.num_kv_heads, length, model.head_dim, dtype=model.dtype)
    layer = weight_shapes(model, model.dtype).layers[0]
    function = partial(chunk_layer, plain)
    arguments = (layer, x, inputs, Cached(key, key), _shape(dtype=np.int32))
    return _temporaries(function, *arguments, donate_argnums=(1, 3)) + weights_bytes(inputs)


@cache
def _cosines(model: ModelConfig, rows: int, chunk: int) -> int:
    """Of the cosines of a chunk's tokens and their successors, with both."""
    x = _shape(rows, chunk, model.hidden_size, dtype=model.dtype)
    return 2 * weights_bytes(x) + _temporaries(similarity_of, x, x)


@cache
def _merging(model: ModelConfig, rows: int, tokens: int) -> int:
    """Of a merging layer, with its result."""
    x = _shape(rows, tokens, model.hidden_size, dtype=model.dtype)
    size = _shape(rows, tokens, dtype=np.float32)

    def merge(x: Any, layout: Any, size: Any) -> Any:
        return merge_batch(model, x, layout, size, 0)

    return _temporaries(merge, x, _layout(rows, tokens), size)


@cache
def _decoding(model: ModelConfig, rows: int, length: int, slots: int) -> int:
    """Of the question, beyond the caches."""
    layers = min(DECODER_LAYERS, model.num_layers)
    small = dataclasses.replace(with_merging(model, NO_MERGING), num_layers=layers)
    shapes = weight_shapes(model, model.dtype)
    weights = shapes._replace(layers=shapes.layers[:layers], lm_head=None)
    key = _shape(rows, model.num_kv_heads, length, model.head_dim, dtype=model.dtype)
    prefix = (PrefixCache(key, key, _shape(rows, length, dtype=bool)),) * layers
    suffix = jax.eval_shape(partial(empty_suffix, small, rows, 1, slots))
    # Tokens after it take less, but not here: the CPU backend widens caches for a single query.
    new = grid_length(QUESTION)
    token = _shape(rows, 1, new, dtype=np.int32)
    mask = _shape(rows, 1, new, slots, dtype=bool)
    angle = _shape(rows, new, model.head_dim // 2, dtype=np.float32)
    arguments = (weights, prefix, suffix, _shape(dtype=np.int32), token, (angle, angle), mask)
    found = _temporaries(partial(append_tokens, small), *arguments, donate_argnums=2)
    # The head is left out, since the CPU backend would widen its table: the logits, and two
    # arrays of their size for choosing a token.
    return found + 3 * 4 * rows * model.vocab_size
