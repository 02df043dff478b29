"""Tests of towers that see clips: what a frame can influence, half precision, memory, axes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config.schema import TeacherConfig
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.models.towers.features import tower_features
from elva_jax.parallel.sharding import RULES, check_collisions

VIVIT = TeacherConfig(
    kind="vivit",
    image_size=16,
    patch_size=8,
    hidden_size=32,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_frames=4,
    tubelet=2,
    features="last",
)
LANGUAGEBIND = dataclasses.replace(VIVIT, kind="languagebind", tubelet=1, features="penultimate")
FRAMES = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 16, 3), np.uint8)


@functools.cache
def program(config, dtype=""):
    """A compiled `tower_features` with random parameters."""
    tower, rng = make_tower(config, dtype), np.random.default_rng(0)
    pixels = np.zeros(input_shape(config), np.float32)
    shapes = nn.meta.unbox(jax.eval_shape(tower.init, jax.random.key(0), pixels))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    return jax.jit(functools.partial(tower_features, tower, params))


def features(config, frames, dtype=""):
    return np.asarray(program(config, dtype)(frames), np.float32)


@pytest.mark.parametrize("config", [VIVIT, LANGUAGEBIND], ids=lambda config: config.kind)
def test_a_frame_changes_its_clip_and_no_other(config):
    """Features are by step in time; the second clip's frames are 4 to 7."""
    changed = FRAMES.copy()
    changed[0, 5] = 255 - changed[0, 5]
    before, after = (features(config, frames) for frames in (FRAMES, changed))
    assert before.shape == (1, 8 // config.tubelet, 2, 2, 32)
    differ = np.abs(after - before).max(axis=(0, 2, 3, 4))
    half = len(differ) // 2
    assert (differ[:half] == 0).all()
    assert (differ[half:] > 1e-4).all()


def test_order_of_frames_counts():
    """Without its temporal embedding, LanguageBind could not tell it."""
    steps = features(LANGUAGEBIND, FRAMES)
    swapped = features(LANGUAGEBIND, FRAMES[:, [1, 0, 2, 3, 4, 5, 6, 7]])
    assert np.abs(swapped[:, [1, 0, 2, 3]] - steps[:, :4]).max() > 1e-3


@pytest.mark.parametrize("config", [VIVIT, LANGUAGEBIND], ids=lambda config: config.kind)
def test_bfloat16_stays_close(config):
    full, half = (features(config, FRAMES, dtype) for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(half - full).max() < 0.1


def test_scores_of_a_long_clip_are_never_whole():
    """By the compiler's account of a tower with one layer and 2,049 tokens."""
    config = dataclasses.replace(
        VIVIT, image_size=64, patch_size=2, num_layers=1, hidden_size=16, intermediate_size=16
    )
    tower, shape = make_tower(config), input_shape(config)
    pixels = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = nn.meta.unbox(jax.eval_shape(tower.init, jax.random.key(0), pixels))
    compiled = jax.jit(lambda *x: tower.apply(*x).last).lower(params, pixels).compile()
    scores = config.num_heads * 2049**2 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * scores


def test_weights_are_not_copied():
    """A loop over all layers but the last reads them from the stack of all."""
    config = dataclasses.replace(VIVIT, num_layers=8, hidden_size=64, intermediate_size=128)
    tower, shape = make_tower(config), input_shape(config)
    pixels = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = nn.meta.unbox(jax.eval_shape(tower.init, jax.random.key(0), pixels))
    compiled = jax.jit(lambda *x: tower.apply(*x).penultimate).lower(params, pixels).compile()
    analysis = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < 0.5 * analysis.argument_size_in_bytes


@pytest.mark.parametrize("config", [VIVIT, LANGUAGEBIND], ids=lambda config: config.kind)
def test_parameters_carry_known_axes_that_do_not_collide(config):
    pixels = jax.ShapeDtypeStruct(input_shape(config), jnp.float32)
    boxed = jax.eval_shape(make_tower(config).init, jax.random.key(0), pixels)["params"]
    for box in jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)):
        assert isinstance(box, nn.Partitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) - {None} <= set(RULES)
        check_collisions(box.names, config.kind)
