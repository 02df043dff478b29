"""The patch embedding against a plain loop over frames and rows."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models.patch_embed import PatchEmbed
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack

SIZE, WIDTH = 2, 8
CONFIG = ModelConfig(hidden_size=6, patch_size=SIZE, patch_width=WIDTH, dtype="float32")
LENGTH, PATCHES = 96, 72  # static shapes that hold whatever hypothesis draws: one compilation
grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def batch(*layouts: TokenLayout) -> TokenLayout:
    return TokenLayout(*map(np.stack, zip(*layouts, strict=True)))


def make(kind="video", heads=1, seed=0, **changes):
    """The module and random parameters at a scale where attention is far from uniform."""
    changes |= {"patch_embed": kind, "patch_heads": heads}
    module = PatchEmbed(dataclasses.replace(CONFIG, **changes))
    layout = batch(build_layout([Clip([(1, 1)])]))
    params = nn.unbox(
        jax.eval_shape(
            module.init, jax.random.key(0), np.zeros((1, 1, SIZE * SIZE * 3), np.uint8), layout
        )
    )
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return module, jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(0, 0.7, leaf.shape), jnp.float32) for leaf in leaves]
    )


def random_patches(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, SIZE * SIZE * 3), dtype=np.uint8)


def loop(params, patches, grids, heads):
    """Visual tokens of one clip, frame by frame and row by row, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    pixels = patches.astype(np.float64) / 127.5 - 1
    embedded = pixels @ p["proj"]["kernel"] + p["proj"]["bias"]

    def attend(query, keys):
        if "q_kernel" not in p:
            return query
        out = []
        for h in range(heads):
            part = slice(h * WIDTH // heads, (h + 1) * WIDTH // heads)
            q, k, v = (
                (query @ p["q_kernel"])[part],
                (keys @ p["k_kernel"])[:, part],
                (keys @ p["v_kernel"])[:, part],
            )
            score = np.exp(k @ q / np.sqrt(WIDTH / heads))
            out.append(score @ v / score.sum())
        return query + np.concatenate(out)

    tokens, start = [], 0
    for rows, columns in grids:
        frame = embedded[start : start + rows * columns]
        tokens.append(attend(p["frame"], frame))
        for row in frame.reshape(rows, columns, WIDTH):
            tokens += [*row, attend(p["line"], row)]
        start += rows * columns
    return np.array(tokens) @ p["out_proj"]["kernel"]


@pytest.mark.parametrize(("kind", "heads"), [("video", 1), ("video", 2), ("naive", 1)])
def test_equals_a_loop_over_frames_and_rows(kind, heads):
    module, params = make(kind, heads)
    apply = jax.jit(module.apply)

    @given(grids=grids, before=st.integers(1, 3), seed=st.integers(0, 99))
    def check(grids, before, seed):
        layout = batch(
            pack([build_layout([Text(range(before)), Clip(grids), Text([1, 2])])], LENGTH)
        )
        patches = random_patches(PATCHES, seed)
        out = np.asarray(apply(params, patches[None], layout))[0]
        visual = np.isin(layout.kind[0], (Kind.FRAME, Kind.PATCH, Kind.LINE))
        expected = loop(params, patches[: sum(r * c for r, c in grids)], grids, heads)
        np.testing.assert_allclose(out[visual], expected, atol=2e-4)
        np.testing.assert_array_equal(out[~visual], 0)

    check()


def test_other_frames_examples_and_padding_change_no_token():
    module, params = make()
    apply = jax.jit(module.apply)
    one, two = build_layout([Clip([(2, 3), (2, 3)])]), build_layout([Text([5]), Clip([(3, 1)])])
    first, second, third = random_patches(6), random_patches(6, 1), random_patches(3, 2)

    def tokens(*examples, parts):
        """Tokens of the row that holds these examples with these patches."""
        patches = np.concatenate([*parts, random_patches(20 - sum(map(len, parts)), 3)])
        return apply(params, patches[None], batch(pack(examples, 40)))[0]

    alone = tokens(one, parts=(first, second))[: one.length]
    other = tokens(one, parts=(first, 255 - second))[: one.length]
    np.testing.assert_allclose(other[:9], alone[:9], atol=1e-6)
    assert np.abs(other[9] - alone[9]).max() > 1e-3, (
        "the second frame's <FRAME> sees the second frame's patches"
    )
    packed = tokens(two, one, parts=(third, first, second))[two.length : two.length + one.length]
    np.testing.assert_allclose(packed, alone, atol=1e-6)


def test_gradients_are_finite_and_do_not_reach_unused_patches():
    module, params = make()
    layout = batch(
        pack([build_layout([Clip([(2, 2), (1, 3)])])], 16), pack([build_layout([Text([1, 2])])], 16)
    )
    patches = np.stack([random_patches(9), random_patches(9, 1)])

    def loss(params, patches):
        return jnp.sum(module.apply(params, patches, layout) ** 2)

    gradient, pixels = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, patches.astype(np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (np.abs(pixels[0, :7]).max(-1) > 0).all()
    np.testing.assert_array_equal(pixels[0, 7:], 0)
    np.testing.assert_array_equal(pixels[1], 0)


def test_bad_settings_are_refused():
    layout = batch(build_layout([Clip([(1, 1)])]))
    for change, message in (
        ({"patch_embed": "conv"}, "patch_embed: 'conv'"),
        ({"patch_heads": 3}, "patch_heads: 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            PatchEmbed(dataclasses.replace(CONFIG, **change)).init(
                jax.random.key(0), np.zeros((1, 1, 12), np.uint8), layout
            )


def test_pixels_are_centered_and_scaled_before_the_first_map():
    layout = batch(build_layout([Clip([(1, 2)])]))
    module, params = make(pixel_mean=0.2, pixel_std=0.4)
    kernel = np.asarray(params["params"]["proj"]["kernel"], np.float64)
    patches = random_patches(2)
    # The same map of pixels in [-1, 1]: p / 255 = (x + 1) / 2, and (p / 255 - 0.2) / 0.4.
    same = jax.tree.map(jnp.copy, params)
    same["params"]["proj"]["kernel"] = jnp.asarray(kernel * (0.5 / 0.4), jnp.float32)
    same["params"]["proj"]["bias"] += kernel.sum(0) * ((0.5 - 0.2) / 0.4)
    usual, _ = make()
    np.testing.assert_allclose(
        jax.jit(module.apply)(params, patches[None], layout),
        jax.jit(usual.apply)(same, patches[None], layout),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(("std", "delimiter"), [(0.02, 0.0), (0.1, 4.0)])
def test_random_weights_have_the_standard_deviation_of_the_config(std, delimiter):
    config = dataclasses.replace(
        CONFIG, initializer_range=std, delimiter_initializer_range=delimiter
    )
    layout = batch(build_layout([Clip([(1, 1)])]))
    params = nn.unbox(
        jax.jit(PatchEmbed(config).init)(
            jax.random.key(0), np.zeros((1, 1, SIZE * SIZE * 3), np.uint8), layout
        )
    )["params"]
    drawn = [params["q_kernel"], params["k_kernel"], params["proj"]["kernel"]]
    assert np.concatenate(list(map(np.ravel, drawn))).std() == pytest.approx(std, rel=0.2)
    vectors = np.concatenate([params["frame"], params["line"]])
    assert vectors.std() == pytest.approx(delimiter or std, rel=0.3)
