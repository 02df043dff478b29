"""MERV's embedding: which frames its encoders see, the order of tokens, gradients."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config.schema import Config, MervConfig, ModelConfig, TeacherConfig
from elva_jax.data.decode_example import merv_settings
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.models.elva import dummy_inputs
from elva_jax.models.merv.embed import MervEmbed
from elva_jax.models.towers.build import make_tower
from elva_jax.models.towers.features import tower_features
from elva_jax.utils.trees import flatten_paths
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack
from elva_jax.video.merv import read_merv_patches
from elva_jax.video.resize import LazyFrame

TOWER = TeacherConfig(
    image_size=16, patch_size=4, hidden_size=12, intermediate_size=16, num_layers=2, num_heads=2
)
ENCODERS = {
    "wide": TOWER,
    # A grid of 5 x 5, of which the last pixels of each side are cut.
    "exact": dataclasses.replace(TOWER, image_size=21, hidden_size=8, activation="gelu"),
}
LENGTH, WIDTH, SLOTS, GRID = 40, 16, 2, 2


def make(fusion="attention", names=tuple(ENCODERS), **changes):
    merv = MervConfig(
        encoders=names, num_frames=4, slots=SLOTS, grid=GRID, fusion=fusion, fusion_width=6
    )
    model = ModelConfig(
        vocab_size=11,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        patch_embed="merv",
        dtype="float32",
        merv=dataclasses.replace(merv, **changes),
    )
    return Config(model=model, encoders=ENCODERS).model


def video(seed):
    """Four frames that are no squares."""
    rng = np.random.default_rng(seed)
    return [LazyFrame.from_array(rng.integers(0, 256, (9, 13, 3), np.uint8)) for _ in range(4)]


def variables_of(model):
    shapes = jax.eval_shape(MervEmbed(model).init, jax.random.key(0), *dummy_inputs(model))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), nn.unbox(shapes)
    )


def batch_of(model):
    """A row with two clips, and one with a clip and a second one that no token refers to."""
    settings = merv_settings(model)
    clips = [read_merv_patches(video(seed), settings) for seed in range(3)]
    clip = settings.clip
    one = pack([build_layout([Text((1,)), clip, Text((2,)), clip])], LENGTH)
    other = pack([build_layout([clip, Text((3, 4))])], LENGTH)
    patches = [np.concatenate(clips[:2]), np.concatenate([clips[2], np.zeros_like(clips[0])])]
    return np.stack(patches), TokenLayout.stack([one, other])


@functools.lru_cache
def features_of(encoder):
    """A function from parameters of a tower and videos to features, compiled once."""
    return jax.jit(functools.partial(tower_features, make_tower(encoder)))


def expected_tokens(model, variables, seeds):
    """X_e [n, L, D] of each encoder, from the frames themselves."""
    out, params = [], jax.tree.map(np.asarray, variables["params"])
    for name, encoder in model.encoders:
        side, grid = encoder.image_size, encoder.grid
        frames = [np.stack([frame.at((side, side)) for frame in video(k)[::2]]) for k in seeds]
        features = np.asarray(features_of(encoder)(params[f"tower_{name}"], np.stack(frames)))
        cells = [slice(i * grid // GRID, -(-(i + 1) * grid // GRID)) for i in range(GRID)]
        means = [
            features[:, slot, rows, columns].mean((1, 2))
            for slot in range(SLOTS)
            for rows in cells
            for columns in cells
        ]
        projector = params[f"projector_{name}"]
        out.append(np.stack(means, axis=1) @ projector["kernel"] + projector["bias"])
    return out


@pytest.fixture(scope="module")
def attention():
    model = make()
    return model, variables_of(model), batch_of(model)


def test_tokens_are_the_fused_encoders_in_order(attention):
    model, variables, (patches, layout) = attention

    @jax.jit
    def run(variables, patches, layout):
        embed = MervEmbed(model)
        weights = embed.apply(variables, patches, method="fusion_weights")
        return embed.apply(variables, patches, layout), weights

    tokens, weights = map(np.asarray, run(variables, patches, layout))
    assert weights.shape == (4, 2)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    is_patch = layout.kind == Kind.PATCH
    assert not tokens[~is_patch].any()
    found = [*np.split(tokens[0][is_patch[0]], 2), tokens[1][is_patch[1]]]
    expected = np.stack(expected_tokens(model, variables, range(3)))
    fused = np.einsum("ne,enld->nld", weights[:3], expected)
    np.testing.assert_allclose(np.stack(found), fused, atol=1e-5)


def test_sequence_has_the_encoders_one_after_another():
    model = make("sequence")
    variables, (patches, layout) = variables_of(model), batch_of(model)
    tokens = np.asarray(jax.jit(MervEmbed(model).apply)(variables, patches, layout))
    assert (layout.kind == Kind.PATCH).sum(1).tolist() == [32, 16]
    got = tokens[1][layout.kind[1] == Kind.PATCH]
    expected = expected_tokens(model, variables, [2, 0, 1])
    np.testing.assert_allclose(got, np.concatenate(expected, axis=1)[0], atol=1e-5)


def test_gradients_reach_projectors_and_fusion_but_no_tower(attention):
    model, variables, (patches, layout) = attention

    def loss(params):
        return jnp.sum(MervEmbed(model).apply({"params": params}, patches, layout) ** 2)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    largest = {path: np.abs(leaf).max() for path, leaf in flatten_paths(gradients).items()}
    # A bias of the keys shifts the scores of all encoders alike, which their softmax does not show.
    assert largest.pop("fusion/k_bias") < 1e-4
    for path, size in largest.items():
        assert size == 0 if path.startswith("tower_") else size > 1e-3, path


def test_errors(attention):
    model, variables, (patches, layout) = attention
    with pytest.raises(LayoutError, match="15 patches are not whole clips of 8"):
        MervEmbed(model).apply(variables, patches[:, :15], layout)
    unknown = make(names=("wide", "nobody"))
    with pytest.raises(ConfigError, match=r"model\.merv\.encoders: needs one or more names"):
        MervEmbed(unknown).apply(variables, patches, layout)
    assert Clip(((GRID, GRID),) * SLOTS, bare=True) == merv_settings(model).clip
