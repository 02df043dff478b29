"""Heads that start by looking back, against attention weights in plain NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config import schema
from elva_jax.config.schema import ModelConfig
from elva_jax.config.serialize import typed
from elva_jax.config.validate import check_model
from elva_jax.errors import ConfigError
from elva_jax.models.qwen2 import Qwen2

BASE = ModelConfig(
    vocab_size=16,
    hidden_size=96,
    intermediate_size=32,
    num_layers=2,
    num_heads=6,
    num_kv_heads=3,
    head_dim=24,
    rope_theta=100.0,
    initializer_range=0.1,
    bias_initializer_range=1.0,
    max_position=64,
    dtype="float32",
)
DISTANCES = (0, 7, 1, 3)
LENGTH = 40


def init(config: ModelConfig) -> dict:
    """The layers' random parameters, as NumPy arrays."""
    one = jnp.ones((1, 1), int)
    params = nn.unbox(jax.jit(Qwen2(config).init)(jax.random.key(0), one, one, one)["params"])
    return jax.tree.map(np.asarray, params["layers"])


def weights(layers: dict, config: ModelConfig, layer: int) -> np.ndarray:
    """Causal attention weights [H, S, S] of random normed states, in complex numbers."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((LENGTH, config.hidden_size))
    states /= np.sqrt((states**2).mean(axis=1, keepdims=True))

    def turned(name: str) -> np.ndarray:
        flat = states @ layers[name]["kernel"][layer] + layers[name]["bias"][layer]
        real, imaginary = np.split(flat.reshape(LENGTH, -1, config.head_dim), 2, axis=-1)
        plane = np.arange(config.head_dim // 2)
        speed = config.rope_theta ** (-2 * plane / config.head_dim)
        return (real + 1j * imaginary) * np.exp(
            1j * np.arange(LENGTH)[:, None, None] * speed[None, None]
        )

    q, k = turned("q_proj"), turned("k_proj")
    k = np.repeat(k, config.num_heads // config.num_kv_heads, axis=1)
    score = np.einsum("phf,shf->hps", q, k.conj()).real / np.sqrt(config.head_dim)
    score = np.where(np.tri(LENGTH, dtype=bool), score, -np.inf)
    score = np.exp(score - score.max(axis=-1, keepdims=True))
    return score / score.sum(axis=-1, keepdims=True)


def test_the_last_heads_of_the_first_layer_look_back_and_no_other_parameter_changes():
    plain = init(BASE)
    config = dataclasses.replace(BASE, distance_heads=DISTANCES)
    changed = init(config)
    weight_HxSxS = weights(changed, config, 0)
    first = BASE.num_heads - len(DISTANCES)
    for head, distance in enumerate(DISTANCES, first):
        looked = np.diagonal(weight_HxSxS[head], -distance)
        assert looked.mean() > 0.75, (head, distance)
    # Without them, no head puts half of its weight on any distance.
    for diagonal in range(max(DISTANCES) + 1):
        for row in weights(plain, BASE, 0):
            assert np.diagonal(row, -diagonal)[8:].mean() < 0.5

    width, group = BASE.head_dim, BASE.num_heads // BASE.num_kv_heads
    starts = {"q_proj": first * width, "k_proj": first // group * width}
    for path, value in jax.tree_util.tree_leaves_with_path(changed):
        name, leaf = (entry.key for entry in path)
        before = plain[name][leaf]
        if name in starts:
            np.testing.assert_array_equal(value[1:], before[1:])
            np.testing.assert_array_equal(
                value[0, ..., : starts[name]], before[0, ..., : starts[name]]
            )
            assert not np.array_equal(value[0], before[0])
        else:
            np.testing.assert_array_equal(value, before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distance_heads": (1,)}, "groups of 6"),
        ({"distance_heads": (1,) * 24}, "24 distances"),
        ({"distance_heads": (1,) * 6, "attention_bias": False}, "attention_bias"),
    ],
)
def test_distances_that_no_heads_can_have_are_refused(changes, said):
    config = schema.base()
    config.curriculum = ("align",)
    config.stages.align = schema.stage()
    config.model.update(changes)
    with pytest.raises(ConfigError, match=r"model\.distance_heads.*" + said):
        check_model(typed(schema.Config, config))
