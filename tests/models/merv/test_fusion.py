"""The fusions against PyTorch's multi-head attention and against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elva_jax.config.schema import MervConfig, ModelConfig
from elva_jax.models.merv.fusion import Fusion

CLIPS, ENCODERS, TOKENS, WIDTH, QUERY = 3, 4, 6, 20, 12


def fusion(kind, encoders=ENCODERS):
    names = tuple("abcd"[:encoders])
    merv = MervConfig(encoders=names, fusion=kind, fusion_width=QUERY)
    return Fusion(ModelConfig(hidden_size=WIDTH, dtype="float32", merv=merv))


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    shape = (ENCODERS, CLIPS, TOKENS, WIDTH)
    return [jnp.asarray(x) for x in rng.normal(1.0, 1.0, shape).astype(np.float32)]


def run(module, tokens, scale=0.4):
    """Random parameters, the fused tokens and the weights."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens)).get("params", {})
    rng = np.random.default_rng(2)
    draw = lambda leaf: rng.normal(0, scale, leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes)
    fused, weights = jax.jit(module.apply)({"params": params}, tokens)
    return params, np.asarray(fused), weights if weights is None else np.asarray(weights)


def torch_attention(params):
    """PyTorch's attention with our weights, and value and output projections of its own."""
    attention = torch.nn.MultiheadAttention(QUERY, 1, kdim=WIDTH, vdim=WIDTH, batch_first=True)
    with torch.no_grad():
        attention.q_proj_weight.copy_(torch.tensor(params["q_kernel"].T))
        attention.k_proj_weight.copy_(torch.tensor(params["k_kernel"].T))
        attention.in_proj_bias[:QUERY] = torch.tensor(params["q_bias"])
        attention.in_proj_bias[QUERY : 2 * QUERY] = torch.tensor(params["k_bias"])
    return attention


def test_attention_is_the_weight_matrix_of_torch(tokens):
    params, fused, weights = run(fusion("attention"), tokens)
    stacked = torch.tensor(np.stack(tokens, axis=1))  # [n, E, L, D]
    query = torch.tensor(params["query"]).expand(CLIPS, 1, QUERY)
    means = stacked.mean(dim=2)
    _, theirs = torch_attention(params)(query, means, means, need_weights=True)
    np.testing.assert_allclose(weights, theirs.detach().numpy()[:, 0], atol=1e-6)
    assert weights.std(axis=0).max() > 0.01  # the weights depend on the clip
    expected = torch.einsum("ne,neld->nld", theirs[:, 0], stacked).detach().numpy()
    np.testing.assert_allclose(fused, expected, atol=1e-5)


def test_scalars(tokens):
    params, fused, weights = run(fusion("scalar"), tokens, 1.0)
    share = np.exp(params["scores"]) / np.exp(params["scores"]).sum()
    np.testing.assert_allclose(weights, np.tile(share, (CLIPS, 1)), rtol=1e-6)
    np.testing.assert_allclose(fused, np.einsum("e,enld->nld", share, tokens), atol=1e-5)


def test_concatenations(tokens):
    _, fused, weights = run(fusion("sequence"), tokens)
    np.testing.assert_array_equal(fused, np.concatenate(tokens, axis=1))
    assert weights is None
    params, fused, weights = run(fusion("channels"), tokens)
    kernel, bias = params["proj"]["kernel"], params["proj"]["bias"]
    np.testing.assert_allclose(fused, np.concatenate(tokens, axis=2) @ kernel + bias, atol=1e-4)
    assert weights is None


@pytest.mark.parametrize("kind", ["attention", "scalar"])
def test_a_single_encoder_has_the_weight_1(tokens, kind):
    _, fused, weights = run(fusion(kind, 1), tokens[:1])
    np.testing.assert_array_equal(weights, 1.0)
    np.testing.assert_array_equal(fused, tokens[0])


def test_attention_starts_as_in_torch(tokens):
    init = jax.jit(fusion("attention").init)
    params = jax.tree.map(np.asarray, nn.unbox(init(jax.random.key(1), tokens)["params"]))
    for name, ends in {"query": (1, QUERY), "k_kernel": (QUERY, WIDTH)}.items():
        bound = np.sqrt(6 / sum(ends))
        assert 0.8 * bound < np.abs(params[name]).max() <= bound
    assert not params["q_bias"].any()
    assert not params["k_bias"].any()
