"""Tests of LanguageBind's video tower: files as on the hub, features against PyTorch modules."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.models.towers.languagebind_torch import LanguageBindVideo

from elva_jax.config import schema
from elva_jax.errors import ConvertError
from elva_jax.hf import languagebind
from elva_jax.models.build import parameter_shapes

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 25,
    "patch_size": 8,
    "num_frames": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "add_time_attn": True,
}


def write(folder, vision, tensors):
    config = {"model_type": "LanguageBindVideo", "vision_config": vision, "projection_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))
    text = {
        "logit_scale": torch.ones(()),
        "text_projection.weight": torch.ones(2, 3),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(2, 2),
        "vision_model.embeddings.position_ids": torch.arange(4),
    }
    safetensors.torch.save_file({**tensors, **text}, folder / "model.safetensors")
    return folder


@pytest.fixture
def saved(randomise, tmp_path):
    """`saved(**changes)`: a folder, the tower in PyTorch, and clips for it."""

    def save(scale=1.0, **changes):
        vision = {**TINY, **changes}
        model = randomise(LanguageBindVideo(vision))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if re.search(r"out_proj|fc2|embedding|pre_layrnorm", name):
                    parameter.mul_(scale)
        folder = write(tmp_path, vision, model.state_dict())
        shape = (2, vision["num_frames"], vision["image_size"], vision["image_size"], 3)
        clips = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        return folder, model.vision_model, clips

    return save


@pytest.mark.parametrize(
    "change",
    [
        # The variance of all states is near that of the norms' epsilon.
        {"scale": 0.01},
        {"num_frames": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16},
        {"num_frames": 1, "num_hidden_layers": 2, "hidden_size": 24, "hidden_act": "quick_gelu"},
    ],
    ids=str,
)
def test_features_equal_pytorch(saved, features_of, change):
    folder, model, clips = saved(**change)
    with torch.no_grad():
        states, pooled = model(torch.from_numpy(clips))
    got = features_of(folder, clips[:, 0] if clips.shape[1] == 1 else clips)
    steps = 0 if clips.shape[1] == 1 else slice(None)
    for ours, theirs in (
        (got.penultimate, states[-2][:, steps, ..., 1:, :]),
        (got.last, states[-1][:, steps, ..., 1:, :]),
        (got.pooled, pooled),
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_the_large_model_has_its_real_size():
    """The sizes of LanguageBind_Video_merge, and of its tensors."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    large |= {"num_attention_heads": 16, "image_size": 224, "patch_size": 14, "num_frames": 8}
    run = schema.base()
    run.teacher.update(languagebind.read_config({"vision_config": {**TINY, **large}}, "here"))
    shapes = parameter_shapes(run, "vision")
    assert shapes["vision/layers/temporal_embedding"] == (24, 8, 1024)
    assert shapes["vision/position_embedding"] == (257, 1024)
    with torch.device("meta"):
        reference = LanguageBindVideo({**TINY, **large}).vision_model
    wanted = sum(parameter.numel() for parameter in reference.parameters())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == wanted


def test_second_group_of_the_config_has_the_last_word():
    """The huge model writes part of its values there."""
    vision = {"hidden_act": "quick_gelu", "hidden_size": 64}
    moved = {key: value for key, value in TINY.items() if key != "image_size"}
    config = {"vision_config": vision, "vision_config_dict": moved}
    values = languagebind.read_config(config, "here")
    assert values["activation"] == "gelu"
    assert (values["hidden_size"], values["image_size"], values["num_frames"]) == (32, 224, 2)


def test_frames_that_the_weights_do_not_have_are_refused(saved, edit, config_of, params_of):
    folder, _, _ = saved(num_hidden_layers=1)
    config = config_of(folder)
    config.teacher.num_frames = 8
    with pytest.raises(ConvertError, match=r"num_frames is 2, the run has teacher\.num_frames = 8"):
        params_of(folder, config, "teacher")
    edit(folder, vision_config={**TINY, "num_hidden_layers": 1, "num_frames": 8})
    with pytest.raises(
        ConvertError, match=r"temporal_embedding is \[1, 2, 32\], expected \[1, 8, 32\]"
    ):
        params_of(folder, config, "teacher")


def test_factors_of_lora_are_refused(saved, config_of, params_of):
    """LanguageBind_Video and _V1.5 hold them in the names of PEFT."""
    folder, model, _ = saved(num_hidden_layers=1)
    beginning = "vision_model.encoder."
    tensors = {f"vision_model.{name}": value for name, value in model.state_dict().items()}
    with_lora = {
        name.replace(beginning, f"{beginning}base_model.model."): value
        for name, value in tensors.items()
    }
    factor = f"{beginning}base_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    write(folder, {**TINY, "num_hidden_layers": 1}, {**with_lora, factor: torch.ones(2, 32)})
    with pytest.raises(ConvertError, match=r"LoRA factors .*use LanguageBind/LanguageBind_Video_m"):
        params_of(folder, config_of(folder), "teacher")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_time_attn": False}, r"vision_config\.add_time_attn of its config\.json is False"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps of its config.json is 1e-06"),
        ({"num_frames": None, "hidden_act": None}, "lacks num_frames, hidden_act; use the file"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_others_are_refused(change, message):
    vision = {key: value for key, value in {**TINY, **change}.items() if value is not None}
    with pytest.raises(ConvertError, match=message):
        languagebind.read_config({"vision_config": vision}, "here")


def test_damaged_numbers_are_refused(saved, edit, config_of):
    folder, _, _ = saved(num_hidden_layers=1)
    edit(folder, vision_config={**TINY, "num_frames": -1})
    with pytest.raises(ConvertError, match=r"config\.json: vision_config\.num_frames"):
        config_of(folder)
