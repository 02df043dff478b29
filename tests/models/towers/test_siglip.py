"""SigLIP against transformers' PyTorch implementation with the same random weights."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import LAYER_NORM_EPS
from elva_jax.models.towers.siglip import Siglip, SiglipVision
from elva_jax.parallel.sharding import RULES, check_collisions

# 25 is no multiple of 8: the last pixel of each side is dropped, as in so400m (384 = 27 * 14 + 6).
TINY = TeacherConfig(
    image_size=25,
    patch_size=8,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    text_layers=2,
    text_length=7,
)
VOCAB = 50


def torch_siglip(config: TeacherConfig):
    shared = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_hidden_layers": config.num_layers,
        **shared,
    }
    text = {
        "vocab_size": VOCAB,
        "max_position_embeddings": config.text_length,
        "num_hidden_layers": config.text_layers,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **shared,
    }
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=vision, text_config=text)
    ).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and norms too, so that a forgotten one is seen
            p.add_(torch.randn_like(p) * 0.1)
    return model


def _layers(state, prefix, count, heads):
    def stack(name, shape=None, transpose=True):
        arrays = [state[f"{prefix}.{i}.{name}"] for i in range(count)]
        arrays = [a.T if transpose and a.ndim == 2 else a for a in arrays]
        return np.stack([a if shape is None else a.reshape(shape) for a in arrays])

    width = state[f"{prefix}.0.layer_norm1.weight"].shape[0]
    per_head = (heads, width // heads)
    out = {}
    for i in (1, 2):
        out[f"norm{i}_scale"], out[f"norm{i}_bias"] = (
            stack(f"layer_norm{i}.weight"),
            stack(f"layer_norm{i}.bias"),
        )
        out[f"fc{i}_kernel"], out[f"fc{i}_bias"] = (
            stack(f"mlp.fc{i}.weight"),
            stack(f"mlp.fc{i}.bias"),
        )
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        out[f"{ours}_kernel"] = stack(f"self_attn.{theirs}.weight", (width, *per_head))
        out[f"{ours}_bias"] = stack(f"self_attn.{theirs}.bias", per_head)
    out["out_kernel"] = stack("self_attn.out_proj.weight", (*per_head, width))
    out["out_bias"] = stack("self_attn.out_proj.bias")
    return out


def map_weights(model, config: TeacherConfig):
    state = {name: p.detach().numpy() for name, p in model.state_dict().items()}
    v, t, heads, width = "vision_model.", "text_model.", config.num_heads, config.hidden_size
    head = {"probe": state[f"{v}head.probe"][0]}
    kernels = np.split(state[f"{v}head.attention.in_proj_weight"], 3)
    biases = np.split(state[f"{v}head.attention.in_proj_bias"], 3)
    for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
        head[f"{name}_kernel"] = kernel.T.reshape(width, heads, -1)
        head[f"{name}_bias"] = bias.reshape(heads, -1)
    head["out_kernel"] = state[f"{v}head.attention.out_proj.weight"].T.reshape(heads, -1, width)
    head["out_bias"] = state[f"{v}head.attention.out_proj.bias"]
    head["norm_scale"], head["norm_bias"] = (
        state[f"{v}head.layernorm.weight"],
        state[f"{v}head.layernorm.bias"],
    )
    for i in (1, 2):
        head[f"fc{i}_kernel"], head[f"fc{i}_bias"] = (
            state[f"{v}head.mlp.fc{i}.weight"].T,
            state[f"{v}head.mlp.fc{i}.bias"],
        )
    vision = {
        "patch_kernel": state[f"{v}embeddings.patch_embedding.weight"]
        .transpose(2, 3, 1, 0)
        .reshape(-1, width),
        "patch_bias": state[f"{v}embeddings.patch_embedding.bias"],
        "position_embedding": state[f"{v}embeddings.position_embedding.weight"],
        "layers": _layers(state, f"{v}encoder.layers", config.num_layers, heads),
        "post_norm_scale": state[f"{v}post_layernorm.weight"],
        "post_norm_bias": state[f"{v}post_layernorm.bias"],
        "head": head,
    }
    text = {
        "token_embedding": state[f"{t}embeddings.token_embedding.weight"],
        "position_embedding": state[f"{t}embeddings.position_embedding.weight"],
        "layers": _layers(state, f"{t}encoder.layers", config.text_layers, heads),
        "final_norm_scale": state[f"{t}final_layer_norm.weight"],
        "final_norm_bias": state[f"{t}final_layer_norm.bias"],
        "head_kernel": state[f"{t}head.weight"].T,
        "head_bias": state[f"{t}head.bias"],
    }
    return {
        "vision": vision,
        "text": text,
        "log_scale": state["logit_scale"][0],
        "bias": state["logit_bias"][0],
    }


def inputs(config):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, config.image_size, config.image_size, 3)).astype(np.float32)
    return pixels, rng.integers(0, VOCAB, (3, config.text_length))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_transformers(num_layers):
    config = dataclasses.replace(TINY, num_layers=num_layers)
    model = torch_siglip(config)
    params = map_weights(model, config)
    pixels, tokens = inputs(config)
    with torch.no_grad():
        want = model(
            input_ids=torch.tensor(tokens),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
            output_hidden_states=True,
        )
        vision = model.vision_model(
            torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True
        )
    fresh = nn.meta.unbox(
        jax.eval_shape(Siglip(config, VOCAB).init, jax.random.key(0), pixels, tokens)
    )["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(np.shape, params)

    got = jax.jit(SiglipVision(config).apply)({"params": params["vision"]}, pixels)
    np.testing.assert_allclose(got.penultimate, vision.hidden_states[-2], atol=1e-4)
    np.testing.assert_allclose(got.last, vision.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(got.pooled, vision.pooler_output, atol=1e-4)

    whole = jax.jit(Siglip(config, VOCAB).apply)
    image, text, log_scale, bias = whole({"params": params}, pixels, tokens)
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(image, want.image_embeds, atol=1e-4)
    np.testing.assert_allclose(text, want.text_embeds, atol=1e-4)
    np.testing.assert_allclose(
        image @ text.T * np.exp(log_scale) + bias, want.logits_per_image, atol=1e-4
    )


def test_so400m_has_the_real_size():
    pixels = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32)
    params = jax.eval_shape(SiglipVision(TeacherConfig()).init, jax.random.key(0), pixels)
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    with torch.device("meta"):
        reference = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
            )
        )
    assert count == sum(p.numel() for p in reference.parameters())
    assert abs(count / 1e6 - 428) < 1
    assert TeacherConfig().grid == 27


def test_parameters_carry_known_axes_that_do_not_collide():
    pixels, tokens = inputs(TINY)
    boxed = jax.eval_shape(Siglip(TINY, VOCAB).init, jax.random.key(0), pixels, tokens)["params"]
    boxes = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    named = [box for box in boxes if isinstance(box, nn.Partitioned)]
    assert len(named) == len(boxes) - 2  # all but the two scalars
    for box in named:
        assert len(box.names) == box.value.ndim
        assert set(box.names) - {None} <= set(RULES)
        check_collisions(box.names, "siglip")


def test_initial_layers_differ_and_keep_the_signal():
    pixels, tokens = inputs(TINY)
    variables = nn.meta.unbox(jax.jit(Siglip(TINY, VOCAB).init)(jax.random.key(0), pixels, tokens))
    kernel = np.asarray(variables["params"]["vision"]["layers"]["fc1_kernel"])
    assert not np.allclose(kernel[0], kernel[1])
    limit = math.sqrt(
        6 / (TINY.hidden_size + TINY.intermediate_size)
    )  # Xavier's, per layer and not over the stack
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    query = np.asarray(variables["params"]["vision"]["layers"]["query_kernel"])
    assert np.abs(query).max() <= math.sqrt(6 / (2 * TINY.hidden_size))
    assert np.abs(query).max() > 0.95 * math.sqrt(6 / (2 * TINY.hidden_size))


def test_bfloat16_stays_close():
    pixels, tokens = inputs(TINY)
    variables = nn.meta.unbox(jax.jit(Siglip(TINY, VOCAB).init)(jax.random.key(0), pixels, tokens))
    vision = {"params": variables["params"]["vision"]}
    full = jax.jit(SiglipVision(TINY).apply)(vision, pixels)
    half = jax.jit(SiglipVision(TINY, "bfloat16").apply)(vision, pixels)
    assert half.penultimate.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.penultimate.astype(np.float32), full.penultimate, atol=0.1)
    assert (
        np.abs(half.penultimate.astype(np.float32) - full.penultimate).max() > 0
    )  # it did compute in half precision


@pytest.mark.parametrize(
    ("config", "size", "length", "key"),
    [
        (TINY, 24, 7, "teacher.image_size"),
        (TINY, 25, 8, "teacher.text_length"),
        (dataclasses.replace(TINY, num_heads=5), 25, 7, "teacher.num_heads"),
        (dataclasses.replace(TINY, text_layers=0), 25, 7, "teacher.text_layers"),
    ],
)
def test_refuses_what_does_not_fit(config, size, length, key):
    pixels, tokens = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
    with pytest.raises(ConfigError, match=key):
        jax.eval_shape(Siglip(config, VOCAB).init, jax.random.key(0), pixels, tokens)
