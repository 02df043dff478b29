"""Frames and views of MERV's encoders as the published code has them."""

import dataclasses

import pytest

from elva_jax.config.merv import View, all_views, encoder_frames, encoder_views
from elva_jax.config.schema import Config, MervConfig, ModelConfig, TeacherConfig
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
