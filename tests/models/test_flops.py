"""Multiply-accumulates of MERV's encoders, as its paper's accounting has them."""

import pytest

from elva_jax.config.schema import TeacherConfig
from elva_jax.models.flops import vision_layer, vision_tower

LARGE = {
    "image_size": 224,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_layers": 24,
    "num_heads": 16,
}
BASE = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_layers": 12,
    "num_heads": 12,
}
ENCODERS = {
    "languagebind": (TeacherConfig(kind="languagebind", num_frames=8, **LARGE), 16, 1.712),
    "dinov2": (TeacherConfig(kind="dinov2", num_registers=4, **LARGE), 16, 1.317),
    "vivit": (TeacherConfig(kind="vivit", num_frames=32, tubelet=2, **BASE), 32, 0.452),
    "siglip": (TeacherConfig(kind="siglip", **BASE), 16, 0.280),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_of_merv(name):
    config, frames, trillions = ENCODERS[name]
    assert round(vision_tower(config, frames) / 2e12, 3) == trillions


def test_four_encoders_together():
    total = sum(vision_tower(config, frames) / 2 for config, frames, _ in ENCODERS.values())
    assert round(total / 1e12, 3) == 3.760


@pytest.mark.parametrize(
    ("width", "heads", "stages", "billions"),
    [(768, 8, (2, 3, 16, 3), 102), (1152, 16, (2, 6, 36, 4), 412)],
)
def test_hiera(width, heads, stages, billions):
    """A clip of 16 frames, as PyTorch counts it in the authors' package (arXiv 2306.00989)."""
    config = TeacherConfig(
        kind="hiera",
        image_size=224,
        patch_size=32,
        hidden_size=width,
        intermediate_size=4 * width,
        num_layers=sum(stages),
        num_heads=heads,
        num_frames=16,
        tubelet=2,
        stages=stages,
    )
    assert round(vision_tower(config, 16) / 2e9) == billions
    last = vision_tower(config, 16) - vision_tower(config, 16, sum(stages) - 1)
    assert last == vision_layer(config, 8 * 7 * 7)
