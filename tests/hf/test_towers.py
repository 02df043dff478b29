"""Tests of SigLIP and EVA-CLIP vision towers: public file formats, features against PyTorch."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from elva_jax import cli
from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema
from elva_jax.config.serialize import typed
from elva_jax.config.tower_schema import TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf import eva_clip, load
from elva_jax.hf.tensor_store import open_store
from elva_jax.models.build import parameter_shapes, vision_tower
from elva_jax.models.towers.common import patchify
from elva_jax.models.towers.eva_clip import MEAN, STD
from elva_jax.utils.trees import unflatten_paths

PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 25, 25, 3)).astype(np.float32)
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 25,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 20,
}


def siglip_features(model, pixels):
    with torch.no_grad():
        return model(
            pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True
        )


def assert_siglip(got, out):
    np.testing.assert_allclose(got.penultimate, out.hidden_states[-2], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.last, out.last_hidden_state, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.pooled, out.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change",
    [{}, {"num_attention_heads": 2, "patch_size": 5, "num_hidden_layers": 2, "hidden_act": "gelu"}],
    ids=str,
)
@pytest.mark.parametrize("whole", [True, False])
def test_siglip_features_equal_transformers(tmp_path, randomise, features_of, change, whole):
    """The folder has the whole model with its text tower, or only the vision tower."""
    if whole:
        config = transformers.SiglipConfig(vision_config={**TINY, **change}, text_config=TEXT)
        model = randomise(transformers.SiglipModel(config))
        vision = model.vision_model
    else:
        model = vision = randomise(
            transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**{**TINY, **change}))
        )
    model.save_pretrained(tmp_path)
    assert_siglip(features_of(tmp_path, PIXELS), siglip_features(vision, PIXELS))


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_siglip_with_and_without_the_prefix(tmp_path, randomise, features_of, prefix):
    model = randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)))
    state = {
        prefix + name.removeprefix("vision_model."): value.contiguous()
        for name, value in model.state_dict().items()
    }
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip_vision_model", **TINY}))
    assert_siglip(features_of(tmp_path, PIXELS), siglip_features(model, PIXELS))


def test_siglip2_with_fixed_resolution(tmp_path, randomise, features_of):
    """Its files have the type siglip and a larger text vocabulary; NaFlex is a different model."""
    config = transformers.SiglipConfig(
        vision_config=TINY, text_config={**TEXT, "vocab_size": 31, "projection_size": 32}
    )
    model = randomise(transformers.SiglipModel(config))
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert_siglip(features_of(tmp_path, PIXELS), siglip_features(model.vision_model, PIXELS))


def test_siglip_without_its_head(tmp_path, randomise, features_of):
    model = randomise(
        transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**TINY, vision_use_head=False)
        )
    )
    model.save_pretrained(tmp_path)
    out, got = siglip_features(model, PIXELS), features_of(tmp_path, PIXELS)
    np.testing.assert_allclose(got.penultimate, out.hidden_states[-2], atol=1e-4, rtol=0)


def test_defaults_missing_in_public_files(config_of, tmp_path):
    """The config.json of google/siglip-base-patch16-224 has few values for its vision tower."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}})
    )
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    theirs, ours = transformers.SiglipVisionConfig(), config_of(tmp_path).teacher
    for key, name in (
        ("image_size", "image_size"),
        ("hidden_size", "hidden_size"),
        ("num_layers", "num_hidden_layers"),
    ):
        assert ours[key] == getattr(theirs, name)
    assert (ours.num_heads, ours.patch_size, ours.intermediate_size) == (12, 16, 3072)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip2"}, "variable resolution"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'; the tower supports only gelu, gelu_pytorch"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
    ],
)
def test_other_siglips_are_refused(tmp_path, edit, config_of, change, message):
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)).save_pretrained(
        tmp_path
    )
    edit(tmp_path, **change)
    with pytest.raises(ConvertError, match=message):
        config_of(tmp_path)


def test_tower_that_contradicts_the_run_is_refused(tmp_path, config_of, features_of):
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)).save_pretrained(
        tmp_path
    )
    config = config_of(tmp_path)
    config.teacher.num_heads = 2
    with pytest.raises(ConvertError, match=r"num_heads is 4, the run has teacher\.num_heads = 2"):
        features_of(tmp_path, PIXELS, config)
    with pytest.raises(ConvertError, match="but an ELVA, a Qwen2 or a Llama is wanted here"):
        load.load_params(tmp_path, {}, config)


def test_exact_gelu_is_a_choice_but_gelu_by_tanh_is_not(tmp_path, edit, config_of, params_of):
    """MERV runs weights trained with GELU by tanh with the exact one, as timm does."""
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)).save_pretrained(
        tmp_path
    )
    config = config_of(tmp_path)
    assert config.teacher.activation == "gelu_tanh"
    config.teacher.activation = "gelu"
    assert params_of(tmp_path, config, "teacher")
    edit(tmp_path, hidden_act="gelu")
    config.teacher.activation = "gelu_tanh"
    with pytest.raises(
        ConvertError, match=r"activation is gelu, the run has teacher\.activation ="
    ):
        params_of(tmp_path, config, "teacher")


EVA = {
    "image_size": 24,
    "patch_size": 8,
    "width": 32,
    "layers": 3,
    "head_width": 8,
    "mlp_ratio": 1.5,
    "qkv_bias": True,
}
FIRST = {"eva_model_name": "eva-clip-tiny", **EVA}
SECOND = {
    "eva_model_name": "eva-clip-tiny",
    **EVA,
    "rope": True,
    "pt_hw_seq_len": 16,
    "intp_freq": True,
    "naiveswiglu": True,
    "subln": True,
}
SQUARE = PIXELS[:, :24, :24]


def write_eva(folder, vision, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 16}})
    )
    extra = {
        "text.transformer.resblocks.0.ln_1.weight": torch.ones(3),
        "logit_scale": torch.ones(1),
        "visual.head.weight": torch.ones(2, 3),
    }
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in {**state, **extra}.items()},
        folder / "model.safetensors",
    )
    return folder


def clip_pixels(pixels):
    """Normalizes pixels as CLIP does; channels come first."""
    normalized = ((pixels + 1) / 2 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(normalized.astype(np.float32)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_eva_clip_features_equal_transformers(tmp_path, randomise, features_of, prefix):
    """BLIP-2's vision tower is EVA01-CLIP-g with other names."""
    config = transformers.Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=24,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    model = randomise(transformers.Blip2VisionModel(config))
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.qkv.bias[32:64] = 0  # keys have no bias
    theirs = model.state_dict()
    state = {
        "cls_token": theirs["embeddings.class_embedding"],
        "pos_embed": theirs["embeddings.position_embedding"],
        "patch_embed.proj.weight": theirs["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embedding.bias"],
        "norm.weight": theirs["post_layernorm.weight"],
        "norm.bias": theirs["post_layernorm.bias"],
    }
    for i in range(3):
        ours, at = f"blocks.{i}.", f"encoder.layers.{i}."
        bias = theirs[f"{at}self_attn.qkv.bias"]
        state |= {f"{ours}attn.qkv.weight": theirs[f"{at}self_attn.qkv.weight"]}
        state |= {f"{ours}attn.q_bias": bias[:32], f"{ours}attn.v_bias": bias[64:]}
        names = {
            "attn.proj": "self_attn.projection",
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }
        for name, other in names.items():
            state |= {
                f"{ours}{name}.{part}": theirs[f"{at}{other}.{part}"] for part in ("weight", "bias")
            }
    folder = write_eva(
        tmp_path / "eva", FIRST, {prefix + name: value for name, value in state.items()}
    )
    with torch.no_grad():
        out = model(pixel_values=clip_pixels(SQUARE), output_hidden_states=True)
    got = features_of(folder, SQUARE)
    assert out.hidden_states[-2].abs().max() > 1
    np.testing.assert_allclose(got.penultimate, out.hidden_states[-2][:, 1:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.last, out.last_hidden_state[:, 1:], atol=1e-4, rtol=0)
    # BLIP-2 applies a second norm before pooling.
    np.testing.assert_allclose(got.pooled, out.last_hidden_state[:, 0], atol=1e-4, rtol=0)


def second_state(seed=0):
    """A random EVA02-CLIP with the authors' names, including the RoPE tables in their files."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, mean=0.0):
        return torch.randn(*shape, generator=generator) * 0.2 + mean

    state = {
        "visual.cls_token": draw(1, 1, 32),
        "visual.pos_embed": draw(1, 10, 32),
        "visual.patch_embed.proj.weight": draw(32, 3, 8, 8),
        "visual.patch_embed.proj.bias": draw(32),
        "visual.norm.weight": draw(32, mean=1.0),
        "visual.norm.bias": draw(32),
        "visual.rope.freqs_cos": draw(9, 8),
        "visual.rope.freqs_sin": draw(9, 8),
    }
    for i in range(3):
        at = f"visual.blocks.{i}."
        state |= {f"{at}attn.{name}_proj.weight": draw(32, 32) for name in "qkv"}
        state |= {f"{at}attn.{name}_bias": draw(32) for name in "qv"}
        for name, width in (
            ("norm1", 32),
            ("norm2", 32),
            ("attn.inner_attn_ln", 32),
            ("mlp.ffn_ln", 48),
        ):
            state |= {f"{at}{name}.weight": draw(width, mean=1.0), f"{at}{name}.bias": draw(width)}
        for name, out, into in (
            ("attn.proj", 32, 32),
            ("mlp.w1", 48, 32),
            ("mlp.w2", 48, 32),
            ("mlp.w3", 32, 48),
        ):
            state |= {f"{at}{name}.weight": draw(out, into), f"{at}{name}.bias": draw(out)}
        state |= {f"{at}attn.rope.freqs_cos": draw(9, 8), f"{at}attn.rope.freqs_sin": draw(9, 8)}
    return state


def second_reference(state, pixels):
    """Hidden states of EVA02-CLIP, implemented directly after arXiv 2303.11331 and 2303.15389."""
    norm = torch.nn.functional.layer_norm
    weights = {name.removeprefix("visual."): value.double() for name, value in state.items()}
    x = torch.nn.functional.conv2d(
        clip_pixels(pixels).double(),
        weights["patch_embed.proj.weight"],
        weights["patch_embed.proj.bias"],
        stride=8,
    )
    x = (
        torch.cat([weights["cls_token"].expand(len(x), 1, 32), x.flatten(2).transpose(1, 2)], 1)
        + weights["pos_embed"]
    )

    def turn(vectors_nxTxD):
        """Rotates pairs of channels as complex numbers, the first half by row, then by column."""
        out = vectors_nxTxD.clone()
        for token in range(9):
            row, column = divmod(token, 3)
            for pair in range(4):
                place, k = (row, pair) if pair < 2 else (column, pair - 2)
                angle = torch.tensor(place / 3 * 16 * 10_000.0 ** (-k / 2), dtype=torch.float64)
                number = torch.view_as_complex(
                    vectors_nxTxD[:, 1 + token, 2 * pair : 2 * pair + 2].contiguous()
                ) * torch.polar(torch.ones((), dtype=torch.float64), angle)
                out[:, 1 + token, 2 * pair : 2 * pair + 2] = torch.view_as_real(number)
        return out

    states = [x]
    for i in range(3):
        p = {
            name.removeprefix(f"blocks.{i}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{i}.")
        }

        def linear(y, name, p=p):
            return y @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        def ln(y, name, p=p):
            return norm(y, y.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)

        y = ln(x, "norm1")
        q, k, v = (
            y @ p["attn.q_proj.weight"].T + p["attn.q_bias"],
            y @ p["attn.k_proj.weight"].T,
            y @ p["attn.v_proj.weight"].T,
        )
        v = v + p["attn.v_bias"]
        heads = []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            score = turn(q[..., part]) @ turn(k[..., part]).transpose(1, 2) / 8**0.5
            heads.append(score.softmax(-1) @ v[..., part])
        x = x + linear(ln(torch.cat(heads, -1), "attn.inner_attn_ln"), "attn.proj")
        y = ln(x, "norm2")
        x = x + linear(
            ln(torch.nn.functional.silu(linear(y, "mlp.w1")) * linear(y, "mlp.w2"), "mlp.ffn_ln"),
            "mlp.w3",
        )
        states.append(x)
    return states, norm(x, (32,), weights["norm.weight"], weights["norm.bias"], 1e-6)


def test_eva02_clip_features_equal_a_direct_implementation(tmp_path, features_of, config_of):
    state = second_state()
    folder = write_eva(tmp_path / "eva", SECOND, state)
    assert config_of(folder).teacher.kind == "eva02_clip"
    states, last = second_reference(state, SQUARE)
    got = features_of(folder, SQUARE)
    np.testing.assert_allclose(got.penultimate, states[-2][:, 1:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.last, last[:, 1:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.pooled, last[:, 0], atol=1e-4, rtol=0)


def test_public_checkpoint_is_read_from_a_pickle(tmp_path, features_of):
    """EVA02_CLIP_*.pt is read if allowed, and equals the same tensors in safetensors."""
    state = second_state()
    folder = write_eva(tmp_path / "eva", SECOND, state)
    wanted = features_of(folder, SQUARE)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "EVA02_CLIP_tiny.pt")
    with pytest.raises(ConvertError, match="--allow-pickle"):
        open_store(folder)
    run = schema.base()
    run.teacher.update(
        eva_clip.read_config(json.loads((folder / "config.json").read_text()), "here")
    )
    targets = load.make_targets(parameter_shapes(run, "vision"), np.float32)
    loaded = load.load_params(folder, targets, run, subtree="vision", allow_pickle=True)
    params = unflatten_paths(loaded.params)["vision"]
    got = jax.jit(vision_tower(run).apply)({"params": params}, SQUARE)
    np.testing.assert_array_equal(got.penultimate, wanted.penultimate)

    words = ["convert", "import", str(folder), str(tmp_path / "out")]
    assert cli.main(words) == 1
    assert cli.main([*words, "--allow-pickle"]) == 0
    imported = load_run(tmp_path / "out", kind="teacher")
    assert imported.config.teacher == typed(TeacherConfig, run.teacher)
    jax.tree.map(np.testing.assert_array_equal, imported.params["vision"], params)


def test_teacher_of_the_paper_has_its_public_shape():
    """EVA01-CLIP-g/14 in the authors' model_configs has about a billion parameters."""
    g = {
        "image_size": 224,
        "layers": 40,
        "width": 1408,
        "head_width": 88,
        "mlp_ratio": 4.3637,
        "patch_size": 14,
    }
    values = eva_clip.read_config({"vision_cfg": {"eva_model_name": "eva-clip-g-14", **g}}, "here")
    assert values == {
        "kind": "eva_clip", "image_size": 224, "patch_size": 14, "hidden_size": 1408,
        "intermediate_size": 6144, "num_layers": 40, "num_heads": 16,
    }  # fmt: skip
    run = schema.base()
    run.teacher.update(values)
    count = sum(int(np.prod(shape)) for shape in parameter_shapes(run, "vision").values())
    assert 1.00e9 < count < 1.02e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"postnorm": True}, "only EVA01-CLIP, and EVA02-CLIP"),
        ({"subln": False}, "only EVA01-CLIP, and EVA02-CLIP"),
        ({"pt_hw_seq_len": 14}, "on a grid of 16"),
        ({"layers": None}, "lacks layers"),
    ],
)
def test_other_eva_clips_are_refused(change, message):
    vision = {key: value for key, value in {**SECOND, **change}.items() if value is not None}
    with pytest.raises(ConvertError, match=message):
        eva_clip.read_config({"vision_cfg": vision}, "here")


def test_patches_have_the_channel_order_of_the_convolution():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    np.testing.assert_array_equal(patchify(pixels, 2, 2)[1, 2].reshape(2, 2, 3), pixels[1, 2:, :2])
