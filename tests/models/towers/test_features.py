"""Tests of features of videos from a vision tower: which frames and clips, in turns or at once."""

import dataclasses
from functools import partial

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
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 6, 16, 16, 3), np.uint8)


def features_of(tower, params, frames):
    return jax.jit(partial(tower_features, tower))(params, frames)


def variables_of(tower):
    shape = input_shape(tower.config)
    return nn.meta.unbox(jax.jit(tower.init)(jax.random.key(0), np.zeros(shape, np.float32)))


@pytest.mark.parametrize("chosen", ["penultimate", "last"])
def test_every_frame_alone(chosen):
    tower = make_tower(dataclasses.replace(IMAGE, features=chosen))
    variables = variables_of(tower)
    got = features_of(tower, variables["params"], FRAMES)
    assert got.shape == (2, 6, 2, 2, 16)
    one = getattr(jax.jit(tower.apply)(variables, to_pixels(FRAMES[1, 4])[None]), chosen)
    np.testing.assert_allclose(got[1, 4].reshape(4, 16), one[0], atol=1e-5)


def test_turns_change_nothing(monkeypatch):
    """A layer has 2 * 4 * 4 scores per frame: two frames at once are allowed, so three turns."""
    tower = make_tower(IMAGE)
    params = variables_of(tower)["params"]
    whole = features_of(tower, params, FRAMES)
    monkeypatch.setattr(features, "MOST_SCORES", 2 * 2 * 4 * 4)
    jaxpr = str(jax.make_jaxpr(lambda x: tower_features(tower, params, x))(FRAMES))
    assert "length=3" in jaxpr
    np.testing.assert_allclose(features_of(tower, params, FRAMES), whole, atol=1e-5)


def test_no_gradient():
    tower = make_tower(IMAGE)
    total = jax.grad(lambda params: tower_features(tower, params, FRAMES).sum())
    grads = jax.jit(total)(variables_of(tower)["params"])
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_frames_that_are_no_whole_clips():
    tower = make_tower(dataclasses.replace(IMAGE, num_frames=4))
    with pytest.raises(ConfigError, match="clips of 4 frames, which 6 frames do not fill"):
        tower_features(tower, {}, FRAMES)
