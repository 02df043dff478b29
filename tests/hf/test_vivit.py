"""Tests of ViViT: folders as on the hub, features against transformers."""

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from elva_jax.config import schema
from elva_jax.errors import ConfigError, ConvertError
from elva_jax.hf import vivit
from elva_jax.models.build import parameter_shapes, vision_tower

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "num_frames": 4,
    "tubelet_size": [2, 8, 8],
}
LONG = {  # 1,153 tokens: attention in blocks
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 48,
    "num_frames": 8,
    "tubelet_size": [1, 4, 4],
}


@pytest.fixture(scope="module")
def saved(randomise, tmp_path_factory):
    """`saved(**changes)`: a folder with a video classifier, as on the hub, and its tower."""

    def save(**changes):
        config = transformers.VivitConfig(**{**TINY, **changes})
        model = randomise(transformers.VivitForVideoClassification(config))
        folder = tmp_path_factory.mktemp("vivit")
        model.save_pretrained(folder)
        names = safetensors.torch.load_file(folder / "model.safetensors")
        assert "vivit.encoder.layer.0.attention.attention.query.weight" in names
        return folder, model.vivit

    return save


@pytest.mark.parametrize(
    "change",
    [
        {},
        LONG,
        {"num_frames": 3, "tubelet_size": [3, 5, 5], "hidden_act": "gelu", "hidden_size": 24},
    ],
    ids=["tiny", "long", "one_step"],
)
def test_features_equal_transformers(saved, config_of, features_of, change):
    folder, model = saved(**change)
    teacher = config_of(folder).teacher
    frames, side = teacher.num_frames, teacher.image_size
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, frames, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        out = model(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3), output_hidden_states=True)
    got = features_of(folder, pixels)
    patches = (side // teacher.patch_size) ** 2
    shape = (2, frames // teacher.tubelet, patches, teacher.hidden_size)
    for ours, theirs in (
        (got.penultimate, out.hidden_states[-2][:, 1:].reshape(shape)),
        (got.last, out.last_hidden_state[:, 1:].reshape(shape)),
        (got.pooled, out.last_hidden_state[:, 0]),
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_tower_alone_has_no_prefix(saved, tmp_path, params_of):
    folder, model = saved(num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    alone, whole = (params_of(path, kind="teacher") for path in (tmp_path, folder))
    jax.tree.map(np.testing.assert_array_equal, alone, whole)


def test_the_base_model_has_its_real_size():
    """google/vivit-b-16x2-kinetics400, whose config.json has the values of transformers."""
    run = schema.base()
    run.teacher.update(vivit.read_config(transformers.VivitConfig().to_dict(), "here"))
    assert (run.teacher.num_frames, run.teacher.tubelet, run.teacher.features) == (32, 2, "last")
    assert run.teacher.activation == "gelu_tanh"
    shapes = parameter_shapes(run, "vision")
    assert shapes["vision/position_embedding"] == (3137, 768)
    with torch.device("meta"):
        reference = transformers.VivitModel(transformers.VivitConfig(), add_pooling_layer=False)
    wanted = sum(parameter.numel() for parameter in reference.parameters())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tubelet_size": [2, 8, 4]}, r"tubelet_size of its config.json is \[2, 8, 4\]"),
        ({"tubelet_size": "2x8x8"}, "needs .frames, edge, edge."),
        ({"tubelet_size": [3, 8, 8]}, "divides num_frames = 4"),
        ({"qkv_bias": False}, "qkv_bias of its config.json is False"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps of its config.json is 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_others_are_refused(change, message):
    with pytest.raises(ConvertError, match=message):
        vivit.read_config({**TINY, **change}, "here")


def test_run_chooses_the_features_but_not_the_tubes(saved, config_of, params_of):
    folder, _ = saved(num_hidden_layers=1)
    config = config_of(folder)
    config.teacher.features = "penultimate"
    assert params_of(folder, config, "teacher")
    config.teacher.tubelet = 1
    with pytest.raises(ConvertError, match=r"tubelet is 2, the run has teacher\.tubelet = 1"):
        params_of(folder, config, "teacher")


@pytest.mark.parametrize(
    ("change", "frames", "message"),
    [({}, 3, "teacher.num_frames and teacher.image_size want"), ({"tubelet": 3}, 4, "tubelet 3")],
)
def test_clips_that_do_not_fit_are_refused(change, frames, message):
    run = schema.base()
    run.teacher.update(vivit.read_config(TINY, "here"))
    run.teacher.update(change)
    pixels = jax.ShapeDtypeStruct((1, frames, 16, 16, 3), np.float32)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(vision_tower(run).init, jax.random.key(0), pixels)
