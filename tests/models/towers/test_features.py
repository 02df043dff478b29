"""Tests of features of videos from a vision tower: which frames and clips, in turns or at once."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers import features
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.models.towers.common import to_pixels
from elva_jax.models.towers.features import tower_features

IMAGE = TeacherConfig(
    image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2
)
CLIP = dataclasses.replace(IMAGE, kind="vivit", num_frames=2, tubelet=2, features="last")
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 6, 16, 16, 3), np.uint8)


def variables_of(tower):
    shape = input_shape(tower.config)
    return nn.meta.unbox(jax.jit(tower.init)(jax.random.key(0), np.zeros(shape, np.float32)))


@pytest.fixture(scope="module")
def image():
    """A tower of images, its variables, and the features of all frames at once."""
    tower = make_tower(IMAGE)
    variables = variables_of(tower)
    return (
        tower,
        variables,
        jax.jit(lambda p: tower_features(tower, p, FRAMES))(variables["params"]),
    )


def test_every_frame_alone(image):
    tower, variables, got = image
    assert got.shape == (2, 6, 2, 2, 16)
    one = jax.jit(tower.apply)(variables, to_pixels(FRAMES[1, 4])[None])
    np.testing.assert_allclose(got[1, 4].reshape(4, 16), one.penultimate[0], atol=1e-5)


def test_every_clip_alone():
    """Clips follow each other in time: frames 0 and 1, then 2 and 3."""
    tower = make_tower(CLIP)
    variables = variables_of(tower)

    @jax.jit
    def both(variables):
        one = tower.apply(variables, to_pixels(FRAMES[1:, 2:4]))
        return tower_features(tower, variables["params"], FRAMES), one.last

    got, one = both(variables)
    assert got.shape == (2, 3, 2, 2, 16)
    np.testing.assert_allclose(got[1, 1].reshape(4, 16), one[0, 0], atol=1e-5)


def test_turns_change_nothing_and_no_gradient_flows(image, monkeypatch):
    """A layer has 2 * 4 * 4 scores per frame: two frames at once are allowed, so three turns."""
    tower, variables, whole = image
    monkeypatch.setattr(features, "MOST_SCORES", 2 * 2 * 4 * 4)

    def total(params):
        got = tower_features(tower, params, FRAMES)
        return got.sum(), got

    program = jax.jit(jax.grad(total, has_aux=True)).trace(variables["params"])
    assert "length=3" in str(program.jaxpr)
    gradients, got = program.lower().compile()(variables["params"])
    np.testing.assert_allclose(got, whole, atol=1e-5)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))


def test_frames_that_are_no_whole_clips():
    tower = make_tower(dataclasses.replace(IMAGE, num_frames=4))
    with pytest.raises(ConfigError, match="clips of 4 frames, which 6 frames do not fill"):
        tower_features(tower, {}, FRAMES)
