"""Weights in int8 and int4: a plain reading of their making, and a model that has them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import elva_jax
from elva_jax import testing
from elva_jax.errors import ConfigError
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.quantization import group_size, quantize_matrix
from elva_jax.ops.quantized import is_quantized

QUESTION = "What color is the square?"


@pytest.fixture(scope="module")
def tiny():
    """The float model, and its quantized ones."""
    model = testing.tiny_model()
    params, tokenizer = model.params, model.tokenizer
    return {None: model} | {
        scheme: ElvaModel(model.config, params, tokenizer, weights=scheme)
        for scheme in ("int8", "int4")
    }


@pytest.mark.parametrize(
    ("scheme", "axis", "largest", "rows"),
    [("int8", 0, 127, 192), ("int8", 1, 127, 192), ("int4", 0, 7, 64), ("int4", 1, 7, 64)],
)
def test_each_value_is_the_nearest_multiple_of_its_scale(scheme, axis, largest, rows):
    matrix = np.random.default_rng(0).normal(size=(192, 20)).astype(np.float32)
    matrix[64:128, 3] = 0  # a group that needs no scale
    groups = matrix.reshape(-1, rows, 20)
    scale = np.abs(groups).max(1, keepdims=True) / largest
    value = np.rint(groups / np.where(scale == 0, 1, scale)).reshape(192, 20)
    if axis:
        matrix, value, scale = matrix.T, value.T, scale[:, 0].T
    found = quantize_matrix(matrix, scheme, axis=axis, scale_dtype=jnp.float32)
    assert str(found.qvalue.dtype) == scheme
    np.testing.assert_array_equal(np.asarray(found.qvalue, np.float32), value)
    expected = scale.reshape(found.scale.shape)
    np.testing.assert_allclose(found.scale, np.where(expected == 0, 1, expected), rtol=1e-6)


@pytest.mark.parametrize(("size", "rows"), [(3584, 64), (96, 48), (48, 48), (40, 40), (97, 97)])
def test_rows_that_share_a_scale(size, rows):
    assert group_size(size) == rows


def test_a_quantized_model_computes_what_its_rounded_weights_say(tiny):
    """Prefill, merging, scores, tokens and hidden states, as of a float model of these weights.

    Matrices in int4; the vocabulary's tables are in int8.
    """
    small, video = tiny["int4"], testing.tiny_video()
    dense = jax.tree.map(
        lambda leaf: qwix.dequantize(leaf.astype(jnp.float32)) if is_quantized(leaf) else leaf,
        small.engine.weights,
        is_leaf=is_quantized,
    )
    rounded = ElvaModel(small.config, tiny[None].params, small.tokenizer)
    rounded.engine.weights = dense
    scores = [
        [score.total for score in model.score(video, QUESTION, ["red", "blue"])]
        for model in (small, rounded)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)
    answers = [
        model.generate([elva_jax.Request(video, QUESTION)], max_new_tokens=6)[0].tokens
        for model in (small, rounded)
    ]
    assert answers[0] == answers[1]
    hidden = [model.hidden_states(video, QUESTION).final for model in (small, rounded)]
    np.testing.assert_allclose(*hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scheme", "off"), [("int8", 0.03), ("int4", 0.6)])
def test_its_scores_are_close_to_those_of_the_float_model(tiny, scheme, off):
    video = testing.tiny_video()
    float_, small = (
        [score.mean for score in tiny[name].score(video, QUESTION, ["red", "blue"], merging=False)]
        for name in (None, scheme)
    )
    assert 0 < np.abs(np.subtract(float_, small)).max() < off


def test_loading_rounds_what_was_saved_once(tiny, tmp_path):
    """The float32 weights of a folder, not those of the compute type."""
    tiny[None].save_pretrained(tmp_path / "out")
    small = elva_jax.load(tmp_path / "out", dtype="bfloat16", weights="int4").engine.weights
    saved = tiny[None].engine.weights
    for found, plain, scheme, axis in (
        (small.layers[2]["down_proj"]["kernel"], saved.layers[2]["down_proj"]["kernel"], "int4", 0),
        (small.lm_head, saved.lm_head, "int8", 0),
        (small.embed_tokens, saved.embed_tokens, "int8", 1),
    ):
        expected = quantize_matrix(plain, scheme, axis=axis, scale_dtype=jnp.bfloat16)
        assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(
            lambda leaf: leaf.dtype, expected
        )
        for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(leaf.astype(jnp.float32), wanted.astype(jnp.float32))
    assert small.layers[2]["q_proj"]["bias"].dtype == jnp.bfloat16
    assert small.norm["scale"].dtype == jnp.float32


def test_what_was_rounded_is_saved_as_it_is(tiny, tmp_path, caplog):
    """The folder answers as the quantized model does, and rounds to the same integers."""
    assert [model.weights for model in tiny.values()] == [None, "int8", "int4"]
    small = tiny["int4"]
    small.save_pretrained(tmp_path / "out")
    assert f"weights are quantized to int4; {tmp_path / 'out'} gets them rounded" in caplog.text
    plain, again = (elva_jax.load(tmp_path / "out", weights=weights) for weights in (None, "int4"))
    scores = [
        [score.total for score in model.score(testing.tiny_video(), QUESTION, ["red", "blue"])]
        for model in (small, plain)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)
    for found, wanted in zip(
        *(jax.tree.leaves(model.engine.weights) for model in (again, small)), strict=True
    ):
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), rtol=1e-6)


def test_refusals(monkeypatch):
    with pytest.raises(ConfigError, match="weights: must be one of int8, int4, got 'int2'"):
        elva_jax.load("nothing", weights="int2")
    monkeypatch.setitem(sys.modules, "qwix", None)
    missing = r'weights="int4" needs the package qwix; pip install "elva_jax\[quant\]"'
    with pytest.raises(ConfigError, match=missing):
        elva_jax.load("nothing", weights="int4")
