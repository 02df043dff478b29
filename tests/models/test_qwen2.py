"""The decoder against transformers' Qwen2 and Llama in PyTorch, and its variants against itself."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models.qwen2 import REMAT_POLICIES, Qwen2, rope_scaling

BASE = ModelConfig(
    vocab_size=83,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10_000.0,
    max_position=64,
    tie_embeddings=False,
    dtype="float32",
)


def rope(kind: str, factor: float):
    """Keys of a RoPE extension of 16 tokens."""
    return {"rope_scaling": kind, "rope_factor": factor, "rope_original_max_position": 16}


def torch_model(config: ModelConfig):
    """The same model in PyTorch with random weights, norms and biases too."""
    scaling = rope_scaling(config)
    parameters = {
        "rope_type": scaling.kind,
        "rope_theta": config.rope_theta,
        "factor": scaling.factor,
    }
    if scaling.kind == "yarn":
        parameters["original_max_position_embeddings"] = scaling.original_max_position
    kind = (
        (Qwen2Config, Qwen2ForCausalLM)
        if config.attention_bias
        else (LlamaConfig, LlamaForCausalLM)
    )
    torch.manual_seed(0)
    model = kind[1](
        kind[0](
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            max_position_embeddings=scaling.original_max_position
            if scaling.kind != "default"
            else config.max_position,
            rope_parameters=parameters,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.eval()


def from_torch(model, config: ModelConfig):
    """Our parameters holding the PyTorch model's weights."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def stack(pattern):
        return np.stack([state[f"model.layers.{i}.{pattern}"] for i in range(config.num_layers)])

    layers = {
        name: {"scale": stack(f"{name}.weight")}
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    for group, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
        for name in names:
            layers[f"{name}_proj"] = {"kernel": stack(f"{group}.{name}_proj.weight").swapaxes(1, 2)}
            if config.attention_bias and name in "qkv":
                layers[f"{name}_proj"]["bias"] = stack(f"{group}.{name}_proj.bias")
    params = {
        "embed_tokens": state["model.embed_tokens.weight"],
        "layers": layers,
        "norm": {"scale": state["model.norm.weight"]},
    }
    if not config.tie_embeddings:
        params["lm_head"] = state["lm_head.weight"].T
    return {"params": params}


def jitted(model):
    """`model.apply` under jit; trailing integers (first and last layer) are static."""
    return jax.jit(model.apply, static_argnums=(4, 5), static_argnames=("method",))


def random_params(model, seed=0):
    """Parameters at a scale where attention is far from uniform."""
    one = jnp.ones((1, 1), int)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(seed), one, one, one))
    leaves, tree = jax.tree.flatten(jax.device_get(params))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [leaf + rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype) for leaf in leaves]
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_kv_heads": 1, "tie_embeddings": True},
        {"num_kv_heads": 4, "head_dim": 16, "num_layers": 2},
        {"attention_bias": False, "rms_norm_eps": 1e-2},
        rope("linear", 2.0),
        rope("dynamic", 2.0),
        rope("yarn", 4.0),
        {"num_layers": 10, "hidden_size": 16},
    ],
    ids=str,
)
def test_logits_equal_transformers(change):
    config = dataclasses.replace(BASE, **change)
    theirs = torch_model(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    ours = Qwen2(config)
    params = from_torch(theirs, config)
    position = np.broadcast_to(np.arange(40), tokens.shape)
    got = jax.jit(lambda p: ours.apply(p, tokens, position, np.ones_like(tokens), rope_length=40))(
        params
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)
    shapes = jax.eval_shape(
        lambda: nn.unbox(ours.init(jax.random.key(0), tokens, position, np.ones_like(tokens)))
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)


def test_packed_rows_equal_separate_rows():
    model = Qwen2(BASE)
    params, apply = random_params(model), jitted(model)
    rng = np.random.default_rng(2)
    lengths = (7, 1, 12)
    parts = [rng.integers(0, BASE.vocab_size, n) for n in lengths]
    tokens = np.concatenate([*parts, np.zeros(4, int)])[None]
    position = np.concatenate([*(np.arange(n) for n in lengths), np.zeros(4, int)])[None]
    segment = np.repeat([1, 2, 3, 0], [*lengths, 4])[None]
    packed = np.asarray(apply(params, tokens, position, segment))[0]
    start = 0
    for part in parts:
        place, ones = np.arange(len(part))[None], np.ones((1, len(part)), int)
        alone = np.asarray(apply(params, part[None], place, ones))[0]
        np.testing.assert_allclose(packed[start : start + len(part)], alone, atol=1e-5)
        start += len(part)


def test_pieces_equal_the_whole_for_every_cut():
    model = Qwen2(BASE)
    params, apply = random_params(model), jitted(model)
    x = np.random.default_rng(3).normal(size=(2, 6, 32)).astype(np.float32)
    position = np.broadcast_to(np.arange(6), (2, 6))

    def run(x, *edges):
        for start, stop in itertools.pairwise(edges):
            x = apply(params, x, position, np.ones((2, 6), int), start, stop, method="layers")
        return x

    whole = run(x, 0, 3)
    for edges in ((0, 1, 3), (0, 0, 2, 3), (0, 1, 2, 3)):
        np.testing.assert_allclose(run(x, *edges), whole, atol=1e-5)
    with pytest.raises(ConfigError, match="decoder's 3 layers"):
        run(x, 0, 4)


@pytest.mark.parametrize(("num_layers", "policies"), [(9, tuple(REMAT_POLICIES)), (2, ("full",))])
def test_remat_policies_change_no_gradient(num_layers, policies):
    config = dataclasses.replace(BASE, num_layers=num_layers, hidden_size=8, intermediate_size=8)
    tokens = np.random.default_rng(4).integers(0, config.vocab_size, (1, 6))
    position, ones = np.arange(6)[None], np.ones((1, 6), int)
    params = random_params(Qwen2(config))

    def gradient(remat):
        loss = jax.jit(
            jax.grad(
                lambda p: jnp.sum(
                    Qwen2(dataclasses.replace(config, remat=remat)).apply(p, tokens, position, ones)
                    ** 2
                )
            )
        )
        return jax.tree.leaves(jax.device_get(loss(params)))

    expected = gradient("none")
    for policy in policies:
        for x, y in zip(gradient(policy), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3 * np.abs(y).max())
    with pytest.raises(ConfigError, match=r"model\.remat: 'some' is unknown"):
        gradient("some")


def test_full_remat_keeps_fewer_residuals():
    config = dataclasses.replace(BASE, num_layers=9)
    tokens = np.ones((1, 6), int)
    params = random_params(Qwen2(config))

    def kept(remat):
        def loss(p):
            return jnp.sum(
                Qwen2(dataclasses.replace(config, remat=remat)).apply(p, tokens, tokens, tokens)
            )

        pullback = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept("full") < kept("names") < kept("none")


def test_parameters_and_logits_stay_float32_under_bfloat16():
    model = Qwen2(dataclasses.replace(BASE, dtype="bfloat16"))
    params = random_params(model)
    tokens = np.arange(12)[None]
    logits = jitted(model)(params, tokens, tokens, np.ones_like(tokens))
    exact = jitted(Qwen2(BASE))(params, tokens, tokens, np.ones_like(tokens))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert model.apply(params, tokens, method="embed").dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert np.corrcoef(logits.ravel(), exact.ravel())[0, 1] > 0.999


def test_every_parameter_names_its_axes():
    one = jnp.ones((1, 1), int)
    boxed = jax.jit(Qwen2(BASE).init)(jax.random.key(0), one, one, one)["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(
        isinstance(leaf, nn.LogicallyPartitioned) and len(leaf.names) == leaf.value.ndim
        for leaf in leaves
    )
    assert boxed["layers"]["q_proj"]["kernel"].names == ("layers", "embed", "heads")
    assert boxed["embed_tokens"].names == ("vocab", "embed")
    first, second = boxed["layers"]["up_proj"]["kernel"].value[:2]
    assert not np.allclose(first, second), "layers must start from different random numbers"
    assert float(jnp.std(boxed["layers"]["up_proj"]["kernel"].value)) == pytest.approx(
        0.02, rel=0.05
    )


@pytest.mark.parametrize("std", [0.0, 1.0])
def test_random_biases_of_queries_and_keys_have_the_standard_deviation_of_the_config(std):
    config = dataclasses.replace(BASE, bias_initializer_range=std)
    one = jnp.ones((1, 1), int)
    params = nn.unbox(jax.jit(Qwen2(config).init)(jax.random.key(0), one, one, one)["params"])
    layers = params["layers"]
    drawn = np.concatenate([np.ravel(layers[name]["bias"]) for name in ("q_proj", "k_proj")])
    assert drawn.std() == pytest.approx(std, rel=0.2)
    assert not np.any(layers["v_proj"]["bias"])
