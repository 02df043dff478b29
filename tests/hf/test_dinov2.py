"""Tests of DINOv2 with registers: folders as on the hub, features against transformers."""

import jax
import numpy as np
import pytest
import torch
import transformers

from elva_jax.checkpoints.restore import load_run, open_run
from elva_jax.config import schema
from elva_jax.errors import ConvertError
from elva_jax.hf import dinov2
from elva_jax.hf.import_checkpoint import import_weights
from elva_jax.models.build import parameter_shapes, vision_tower
from elva_jax.models.towers.dinov2 import MEAN, STD, bicubic_matrix

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 40,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def saved(randomise, tmp_path_factory):
    """`saved(**changes)`: a folder that transformers wrote, and the model in it."""

    def save(**changes):
        config = transformers.Dinov2WithRegistersConfig(**{**TINY, **changes})
        model = randomise(transformers.Dinov2WithRegistersModel(config))
        folder = tmp_path_factory.mktemp("dinov2")
        model.save_pretrained(folder)
        return folder, model

    return save


@pytest.mark.parametrize(
    ("change", "image_size"),
    [
        ({}, 40),
        ({}, 25),  # a smaller grid; the last pixel of each side is in no patch
        ({"num_register_tokens": 1, "image_size": 16, "num_hidden_layers": 2}, 56),  # a larger one
    ],
    ids=str,
)
def test_features_equal_transformers(saved, config_of, features_of, change, image_size):
    """Layer scales are far from 1, and of both signs."""
    folder, model = saved(**change)
    config = config_of(folder)
    config.teacher.image_size = image_size
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, image_size, image_size, 3))
    normalized = ((pixels + 1) / 2 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        out = model(
            pixel_values=torch.from_numpy(normalized.astype(np.float32)).permute(0, 3, 1, 2),
            output_hidden_states=True,
        )
    got, first = (
        features_of(folder, pixels.astype(np.float32), config),
        1 + config.teacher.num_registers,
    )
    assert got.last.shape == (2, (image_size // 8) ** 2, 32)
    np.testing.assert_allclose(got.penultimate, out.hidden_states[-2][:, first:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.last, out.last_hidden_state[:, first:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.pooled, out.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "target"), [(37, 16), (16, 37), (5, 7)])
def test_interpolation_is_that_of_pytorch(size, target):
    table = torch.eye(size).reshape(size, 1, 1, size)
    wanted = torch.nn.functional.interpolate(
        table, size=(1, target), mode="bicubic", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(bicubic_matrix(size, target), wanted[:, 0, 0].T, atol=1e-6)


def test_the_large_model_has_its_real_size():
    """facebook/dinov2-with-registers-large, whose positions are those of 37 x 37 patches."""
    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 518,
        "patch_size": 14,
    }
    run = schema.base()
    run.teacher.update(dinov2.read_config({"hidden_act": "gelu", **large}, "here"))
    run.teacher.image_size = 224
    shapes = parameter_shapes(run, "vision")
    assert shapes["vision/position_embedding"] == (1370, 1024)
    with torch.device("meta"):
        reference = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**large)
        )
    masked = reference.embeddings.mask_token.numel()
    wanted = sum(parameter.numel() for parameter in reference.parameters()) - masked
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn of its config.json is True"),
        ({"qkv_bias": False}, "qkv_bias of its config.json is False"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps of its config.json is 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"mlp_ratio": 1e30}, r"mlp_ratio 1e\+30 of its config.json gives MLPs of width 3.2e\+31"),
    ],
)
def test_others_are_refused(change, message):
    with pytest.raises(ConvertError, match=message):
        dinov2.read_config({**TINY, **change}, "here")


def test_positions_of_another_size_are_refused(saved, config_of, params_of):
    folder, _ = saved(num_hidden_layers=1)
    config = config_of(folder)
    config.teacher.update(image_size=24, pretrained_image_size=0)
    with pytest.raises(ConvertError, match=r"teacher\.pretrained_image_size = 0"):
        params_of(folder, config, "teacher")
    config.teacher.image_size = 40
    assert params_of(folder, config, "teacher")


def test_registers_that_config_json_does_not_count(saved, edit, params_of):
    folder, _ = saved(num_hidden_layers=1, num_register_tokens=0)
    assert "registers" not in params_of(folder, kind="teacher")["vision"]
    folder, _ = saved(num_hidden_layers=1)
    edit(folder, num_register_tokens=0)
    with pytest.raises(ConvertError, match=r"register_tokens \[1, 4, 32\] is unexpected"):
        params_of(folder, kind="teacher")


def test_import_keeps_features_and_description(saved, features_of, tmp_path):
    """`elva convert import`, and the checkpoint that it writes."""
    folder, _ = saved(num_hidden_layers=2)
    import_weights(folder, tmp_path / "imported")
    run = open_run(tmp_path / "imported", kind="teacher")
    assert (run.config.teacher.kind, run.config.teacher.num_registers) == ("dinov2", 4)
    pixels = np.random.default_rng(2).uniform(-1, 1, (1, 40, 40, 3)).astype(np.float32)
    params = load_run(tmp_path / "imported", kind="teacher").params["vision"]
    got = jax.jit(vision_tower(run.config).apply)({"params": params}, pixels)
    np.testing.assert_array_equal(got.last, features_of(folder, pixels).last)
