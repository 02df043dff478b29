"""Frames and views of MERV's encoders as the published code has them."""

import dataclasses
from pathlib import Path

import pytest

from elva_jax.config.load import load
from elva_jax.config.merv import View, all_views, encoder_frames, encoder_views
from elva_jax.config.schema import Config, MervConfig, ModelConfig, TeacherConfig
from elva_jax.config.serialize import freeze
from elva_jax.data.decode_example import merv_settings
from elva_jax.errors import ConfigError

ENCODERS = {
    "languagebind": TeacherConfig(kind="languagebind", image_size=224, num_frames=8),
    "dinov2": TeacherConfig(kind="dinov2", image_size=224),
    "vivit": TeacherConfig(kind="vivit", image_size=224, patch_size=16, num_frames=32, tubelet=2),
    "siglip": TeacherConfig(kind="siglip", image_size=224, patch_size=16),
}


def model(names=tuple(ENCODERS), **merv):
    settings = ModelConfig(patch_embed="merv", merv=MervConfig(encoders=names, **merv))
    return Config(model=settings, encoders=ENCODERS).model


def test_frames_of_the_published_encoders():
    frames = {name: encoder_frames(MervConfig(), each) for name, each in ENCODERS.items()}
    assert frames == {"languagebind": 16, "dinov2": 16, "vivit": 32, "siglip": 16}
    hiera = TeacherConfig(kind="hiera", num_frames=16, tubelet=2)
    assert encoder_frames(MervConfig(), hiera) == 32


def test_views_of_the_published_encoders():
    merv = MervConfig(geometry="published")
    both = (View("bilinear", 224, 0), View("bilinear", 224, 1))
    assert encoder_views(merv, ENCODERS["vivit"]) == both
    assert all_views(merv, list(ENCODERS.values())) == (
        View("crop", 224, 0),
        View("bicubic", 224, 0),
        *both,
    )
    assert all_views(MervConfig(), list(ENCODERS.values())) == (
        View("stretch", 224, 0),
        View("stretch", 224, 1),
    )


@pytest.mark.parametrize(("fusion", "copies"), [("attention", 1), ("sequence", 4)])
def test_patches_share_the_pixels_of_a_clip(fusion, copies):
    made = model(fusion=fusion)
    assert made.frame_patches == copies * 1024
    assert made.frame_patches * made.patch_values == 32 * 224**2 * 3
    assert merv_settings(made).clip.grids == ((8, 8),) * 16 * copies
    assert ModelConfig(patch_size=28).patch_values == 28**2 * 3


def test_too_few_frames_are_refused():
    small = model(num_frames=16)
    with pytest.raises(ConfigError, match=r"model\.merv\.num_frames: 16 is no multiple of the 32"):
        _ = small.patch_values
    alone = dataclasses.replace(small, encoders=small.encoders[:2])
    assert merv_settings(alone).views == (View("stretch", 224, 0),)


CONFIG_FILE = str(Path(__file__).parents[2] / "configs" / "merv.py")
# Batch, learning rate, weight decay and whether captions alone are learned, of each stage.
STAGES = {"align": (256, 1e-4, 0.0, True), "finetune": (128, 2e-5, 0.1, False)}


@pytest.mark.parametrize("llm", ["llama2_7b", "qwen2_1_5b", "qwen2_7b"])
@pytest.mark.parametrize(("recipe", "stages"), [("frozen", ["finetune"]), ("full", list(STAGES))])
def test_the_recipes_have_the_papers_values(recipe, stages, llm):
    c = freeze(load(f"{CONFIG_FILE}:recipe={recipe},llm={llm}"))
    assert list(c.curriculum) == stages
    names = ("languagebind", "dinov2", "vivit", "siglip")
    assert tuple(name for name, _ in c.model.encoders) == names
    assert c.model.frame_patches == 1024
    assert all(each.init_from.startswith("checkpoints/") for each in c.encoders.values())
    assert c.init_from == c.tokenizer
    assert c.init_from.startswith("checkpoints/")
    for name in stages:
        s = c.stages[name]
        o, form = s.optimizer, "llama2_base" if llm == "llama2_7b" else "chatml"
        assert (s.batch_size, o.learning_rate, o.weight_decay, s.data.captions) == STAGES[name]
        assert (o.warmup_ratio, o.final_ratio, o.clip_norm, s.epochs) == (0.03, 0.0, 1.0, 1.0)
        assert (o.name, o.decay_on, s.data.prompt_format) == ("adamw", "matrices", form)
        assert o.freeze == ("^elva/patch_embed/tower_",)
        assert s.data.seq_len == 1024 + 2048


REFUSED = {
    "model.merv.encoders=()": r"model\.merv\.encoders: names no encoder",
    "model.merv.encoders=('vivvit',)": r"no encoder 'vivvit' in encoders; did you mean vivit\?",
    "model.merv.encoders=('vivit','vivit')": r"model\.merv\.encoders: names an encoder twice",
    "model.patch_embed=video": r"model\.merv\.encoders: names .* set that to merv",
    "model.merv.num_frames=3": r"model\.merv\.num_frames: 3 is no multiple of the",
    "encoders.dinov2.num_frames=4": r"encoders\.dinov2\.num_frames: a dinov2 sees one image",
    "encoders.dinov2.init_from=": r"encoders\.dinov2\.init_from: names no weights.*'random'",
    "stages.finetune.data.max_patches=65": r"data\.max_patches: 65 is not a multiple of the 32",
    "stages.finetune.data.max_frames=1": r"data\.max_frames: 1 is less than the 2 steps in time",
    "stages.finetune.loss.tube=1.0": r"stages\.finetune\.loss\.tube: must be 0: with .* merv",
    "stages.finetune.data.num_low_frames=2": r"data\.num_low_frames: must be 0",
    "stages.finetune.optimizer.freeze=()": r"optimizer\.freeze: leaves encoder languagebind",
}


@pytest.mark.parametrize("change", REFUSED)
def test_settings_that_cannot_be_mervs_are_refused(change):
    with pytest.raises(ConfigError, match=REFUSED[change]):
        load(f"{CONFIG_FILE}:llm=tiny", [f"--config.{change}"])
