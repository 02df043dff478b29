"""Tests that prefill in chunks equals prefill in one piece, and that its memory does not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.inference import chunked_prefill
from elva_jax.inference.chunked_prefill import CHUNK, LONG, chunk_for
from elva_jax.inference.kv_cache import PrefixCache, SuffixCache, grouped_attention
from elva_jax.inference.prefill import layer_inputs
from elva_jax.inference.scoring import Choice
from elva_jax.ops.attention import packed_attention
from elva_jax.ops.attention.cached import Cached, cached_attention
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.video.layout import TokenLayout

POLICIES = ("threshold", "ratio", "both", "pool")


def test_which_prompts_are_prefilled_in_chunks():
    assert [chunk_for(n, None) for n in (16, LONG, LONG + 1)] == [None, None, CHUNK]
    assert [chunk_for(n, 0) for n in (16, 10**6)] == [None, None]
    assert [chunk_for(n, 100) for n in (99, 100, 101)] == [None, None, 100]


@pytest.mark.parametrize(("start", "queries"), [(0, 300), (90, 210), (255, 45), (37, 5)])
def test_attention_to_a_cache_equals_attention_in_one_piece(start, queries):
    q, k, v = (jax.random.normal(jax.random.key(n), (2, 300, n, 8)) for n in (4, 2, 2))
    expected = packed_attention(q, k, v, jnp.ones((2, 300), jnp.int32))
    part = slice(start, start + queries)
    rest = jnp.where(jnp.arange(300)[None, :, None, None] < part.stop, 1, jnp.nan)
    cached = Cached(
        *(jnp.nan_to_num(x * rest, nan=1e3).swapaxes(1, 2) for x in (k, v))
    )  # what comes later must not matter
    out = jax.jit(cached_attention)(q[:, part], k[:, part], v[:, part], cached, start)
    np.testing.assert_allclose(out, expected[:, part], atol=2e-6)


def question(length, seed=0):
    """Three tokens of two questions after prefixes of `length` tokens, one of them shorter."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    valid = jnp.arange(length)[None] < jnp.array([[length], [length // 3]])
    prefix = PrefixCache(normal(2, 2, length, 8), normal(2, 2, length, 8), valid)
    suffix = SuffixCache(normal(2, 2, 2, 5, 8), normal(2, 2, 2, 5, 8))
    mask = jnp.broadcast_to(jnp.arange(5)[None] <= jnp.arange(3)[:, None] + 1, (2, 2, 3, 5))
    return (normal(2, 6, 4, 8), normal(2, 6, 2, 8), normal(2, 6, 2, 8), prefix, suffix, mask, 1)


def test_a_question_attends_to_a_long_prefix_in_tiles():
    """Of 256 keys; the last tile is cut, and a row is padding in whole tiles."""
    run = jax.jit(grouped_attention, static_argnums=7)
    arguments = question(900)
    (whole, cache), (tiles, same) = (run(*arguments, most) for most in (2**30, 0))
    np.testing.assert_allclose(whole, tiles, atol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, cache, same)

    def memory(length, most):
        program = run.lower(*question(length), most).compile()
        return program.memory_analysis().temp_size_in_bytes

    one_piece, more = memory(900, 2**30), memory(9000, 2**30)
    in_tiles, flat = memory(900, 0), memory(9000, 0)
    assert in_tiles == flat < one_piece < more


def both(model, monkeypatch, shown, merging, chunk):
    whole = model.prefill(shown, merging=merging)
    monkeypatch.setattr(model.engine, "prefill_chunk", chunk)
    return whole, model.prefill(shown, merging=merging)


def assert_same(whole, chunked):
    for name in ("tokens", "length"):
        np.testing.assert_array_equal(getattr(whole.prefix, name), getattr(chunked.prefix, name))
    for one, other in zip(whole.prefix.layers, chunked.prefix.layers, strict=True):
        np.testing.assert_array_equal(one.valid, other.valid)
        used = np.asarray(one.valid)[:, None, :, None]
        for x, y in ((one.k, other.k), (one.v, other.v)):
            np.testing.assert_allclose(np.where(used, x, 0), np.where(used, y, 0), atol=3e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_equal_one_piece(model, shown, monkeypatch, policy):
    """Rows of several lengths; the chunk divides neither a frame nor the prompt."""
    layers = (MergeLayer(0, policy, 0.3, 0.7), MergeLayer(2, policy, 0.2, 0.6))
    merging = Merging(layers, merge_lines=policy == "both")
    whole, chunked = both(model, monkeypatch, shown, merging, 21)
    assert (np.diff(whole.prefix.tokens, axis=0) < 0).any(), "nothing merged"
    assert_same(whole, chunked)
    one, other = (prefilled.generate([["What moves?"]] * 4, 3) for prefilled in (whole, chunked))
    assert one == other
    choices = [[Choice("What moves?", ("red square", "no", "up"))]] * 4
    scores = [
        [found.total for row in prefilled.score(choices) for option in row for found in option]
        for prefilled in (whole, chunked)
    ]
    np.testing.assert_allclose(*scores, atol=1e-5)


def layer_memory(config, length, chunk):
    """Temporary bytes of a layer on one chunk, whose cache has `length` places."""
    layout = TokenLayout(*map(jnp.asarray, TokenLayout.padding(1, chunk)))
    inputs = jax.eval_shape(lambda: layer_inputs(config, layout, jnp.zeros(1, jnp.int32)))
    cache = jax.ShapeDtypeStruct((1, config.num_kv_heads, length, config.head_dim), jnp.float32)
    x = jax.ShapeDtypeStruct((1, chunk, config.hidden_size), jnp.float32)
    return inputs, Cached(cache, cache), x


def test_memory_of_a_layer_does_not_grow_with_the_prompt(model):
    config, params = model.model_config, model.engine.weights.layers[0]
    used = []
    for length in (1024, 16 * 1024):
        inputs, cache, x = layer_memory(config, length, 256)
        start = jax.ShapeDtypeStruct((), jnp.int32)
        program = chunked_prefill.run_chunk.lower(config, params, x, inputs, cache, start)
        used.append(program.compile().memory_analysis().temp_size_in_bytes)
    assert used[0] == used[1] > 0
