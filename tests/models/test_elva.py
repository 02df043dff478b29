"""The whole model: embedding, layer blocks with merging between them, survivors, statistics."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config import schema
from elva_jax.config.schema import ModelConfig
from elva_jax.config.serialize import typed
from elva_jax.errors import ConfigError
from elva_jax.models.elva import Elva, LayerBlock, layer_blocks, merging_of, with_merging
from elva_jax.models.qwen2 import rope_scaling
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.ops.rope import RopeScaling
from elva_jax.tasks.video_llm import token_metrics
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack

LENGTH, PATCHES, VOCAB = 56, 24, 61
CONFIG = with_merging(
    ModelConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        rope_theta=10_000.0,
        max_position=128,
        patch_size=2,
        patch_width=8,
        dtype="float32",
    ),
    Merging((MergeLayer(0, "threshold", 0.9), MergeLayer(2, "ratio", ratio=0.5))),
)


def batch(*layouts: TokenLayout) -> TokenLayout:
    return TokenLayout(*map(np.stack, zip(*layouts, strict=True)))


def video(grids, prompt=3, answer=4, seed=0):
    rng = np.random.default_rng(seed)
    parts = [
        Text(rng.integers(0, VOCAB, 2)),
        Clip(grids),
        Text(rng.integers(0, VOCAB, prompt)),
        Text(rng.integers(0, VOCAB, answer), weight=1.0),
    ]
    return build_layout(parts)


def inputs():
    """Two rows: one static video of three frames; a video and a text packed together."""
    rng = np.random.default_rng(0)
    first, second = video([(2, 2)] * 3), video([(2, 3), (2, 3)], seed=1)
    text = build_layout([Text(rng.integers(0, VOCAB, 5))])
    patches = rng.integers(0, 256, (2, PATCHES, 12), dtype=np.uint8)
    patches[0, :12] = np.tile(patches[0, :4], (3, 1))
    return patches, batch(pack([first], LENGTH), pack([second, text], LENGTH))


@pytest.fixture(scope="module")
def model():
    return Elva(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    patches, layout = inputs()
    start = nn.unbox(jax.jit(model.init)(jax.random.key(0), patches, layout))
    leaves, tree = jax.tree.flatten(start)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [leaf + jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype) for leaf in leaves]
    )


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(model.apply, static_argnames=("merging", "buckets"))


def test_segments_cut_the_decoder_at_the_merging_layers():
    assert layer_blocks(CONFIG, merging=True) == (
        LayerBlock(start=0, stop=2, merge=0),
        LayerBlock(start=2, stop=3, merge=1),
    )
    assert layer_blocks(CONFIG, merging=False) == (LayerBlock(start=0, stop=3, merge=None),)
    late = with_merging(CONFIG, Merging((MergeLayer(1),)))
    assert layer_blocks(late, merging=True) == (
        LayerBlock(start=0, stop=1, merge=None),
        LayerBlock(start=1, stop=3, merge=0),
    )
    for cuts in ((2, 1), (1, 1), (3,)):
        wrong = with_merging(CONFIG, Merging(tuple(MergeLayer(cut) for cut in cuts)))
        with pytest.raises(ConfigError, match=r"model\.merge_layers: must increase within 0 … 2"):
            layer_blocks(wrong, merging=True)


def test_without_merging_every_token_stays_where_it_is(forward, params):
    patches, layout = inputs()
    out = forward(params, patches, layout)
    assert out.hidden.shape == (2, LENGTH, 16)
    np.testing.assert_array_equal(
        out.survivor, np.where(layout.kind == Kind.PAD, -1, np.arange(LENGTH))
    )
    assert out.merges == ()
    metrics = token_metrics(CONFIG, layout, out, merging=False)
    assert metrics.keys() == {"tokens", "padding"}
    assert float(metrics["padding"]) == pytest.approx(np.mean(layout.kind == Kind.PAD))


def test_text_is_embedded_by_the_table_and_padding_is_zero(model, params):
    patches, layout = inputs()
    x = jax.jit(lambda p: model.apply(p, patches, layout, method="embed"))(params)
    text = layout.kind == Kind.TEXT
    np.testing.assert_array_equal(
        np.asarray(x)[text],
        np.asarray(params["params"]["decoder"]["embed_tokens"])[layout.token_id[text]],
    )
    np.testing.assert_array_equal(np.asarray(x)[layout.kind == Kind.PAD], 0)


def test_survivors_and_statistics_of_two_merging_layers(forward, params):
    patches, layout = inputs()
    out = forward(params, patches, layout, merging=True)
    kept = out.layout
    for row in range(2):
        survivor, used = np.asarray(out.survivor[row]), layout.kind[row] != Kind.PAD
        assert ((survivor >= 0) == used).all()
        unmerged = used & (layout.kind[row] != Kind.PATCH)
        for name in ("kind", "token_id", "position", "target", "segment"):
            np.testing.assert_array_equal(
                np.asarray(getattr(kept, name)[row])[survivor[unmerged]],
                getattr(layout, name)[row][unmerged],
            )
        np.testing.assert_array_equal(
            np.asarray(kept.tube[row])[survivor[used]], layout.tube[row][used]
        )
        np.testing.assert_array_equal(out.size[row], np.bincount(survivor[used], minlength=LENGTH))
    # Row 0 is a static video: one token per tube is left. Row 1 keeps at most half of its 12
    # patches, but at least one per tube.
    assert int((kept.kind[0] == Kind.PATCH).sum()) == 4
    assert int((kept.kind[1] == Kind.PATCH).sum()) == 6
    first, second = out.merges
    np.testing.assert_array_equal(second.patches, [4, 6])
    assert np.asarray([first.forced, second.overflow]).sum() == 0
    unmerged = np.isin(layout.kind, (Kind.FRAME, Kind.LINE)).sum(axis=1)
    for stats in out.merges:
        np.testing.assert_array_equal(stats.visual - stats.patches, unmerged)
    np.testing.assert_array_equal(second.padding, (kept.kind == Kind.PAD).sum(axis=1))
    np.testing.assert_array_equal(second.padding + second.survivors, kept.kind.shape[1])

    metrics = token_metrics(CONFIG, layout, out, merging=True)
    layers = metrics["merge"]
    assert float(layers[1].kept) == pytest.approx(10 / 24)
    assert float(layers[0].forced) == float(layers[1].overflow) == 0
    visual = np.isin(layout.kind, (Kind.FRAME, Kind.PATCH, Kind.LINE)).sum()
    after = [float(layer.kept) * 24 + visual - 24 for layer in layers]
    assert float(metrics["merge/kept_mean"]) == pytest.approx(
        (2 * after[0] + after[1]) / (3 * visual)
    )
    assert float(layers[1].padding) == pytest.approx(float((kept.kind == Kind.PAD).mean()))


def test_buckets_shorten_the_sequence_and_change_no_result(forward, params):
    patches, layout = inputs()
    plain = forward(params, patches, layout, merging=True)
    out = forward(params, patches, layout, merging=True, buckets=(48, 32))
    assert out.hidden.shape == (2, 32, 16)
    np.testing.assert_array_equal(out.survivor, plain.survivor)
    used = np.asarray(out.layout.kind != Kind.PAD)
    np.testing.assert_allclose(
        np.asarray(out.hidden)[used], np.asarray(plain.hidden)[:, :32][used], atol=1e-5
    )
    with pytest.raises(ConfigError, match="merge_buckets: 1 for 2 merging layers"):
        forward(params, patches, layout, merging=True, buckets=(48,))


@pytest.mark.parametrize("merging", [False, True])
def test_packing_changes_no_hidden_state(forward, params, merging):
    patches, packed = inputs()
    rng = np.random.default_rng(0)
    second = video([(2, 3), (2, 3)], seed=1)
    text = build_layout([Text(rng.integers(0, VOCAB, 5))])
    separate = batch(pack([second], LENGTH), pack([text], LENGTH))
    whole = forward(params, patches, packed, merging=merging)
    apart = forward(params, patches[[1, 1]], separate, merging=merging)
    for row, segment, name in ((0, 1, "second"), (1, 2, "text")):
        got = np.asarray(whole.hidden[1])[np.asarray(whole.layout.segment[1]) == segment]
        np.testing.assert_allclose(
            got,
            np.asarray(apart.hidden[row])[np.asarray(apart.layout.segment[row]) == 1],
            atol=1e-5,
            err_msg=name,
        )


@pytest.mark.parametrize("merging", [False, True])
def test_later_frames_never_change_earlier_text(params, merging):
    """By threshold only: a ratio is of the whole example, so later frames may change the pairs."""
    rules = (MergeLayer(0, "threshold", 0.99), MergeLayer(2, "threshold", 0.99))
    model = Elva(with_merging(CONFIG, Merging(rules)))
    rng = np.random.default_rng(5)
    parts = [
        Clip([(2, 2), (2, 2)]),
        Text(rng.integers(0, VOCAB, 4)),
        Clip([(2, 2), (2, 2)]),
        Text([1]),
    ]
    layout = batch(pack([build_layout(parts)], LENGTH))
    patches = rng.integers(0, 256, (1, PATCHES, 12), dtype=np.uint8)
    changed = patches.copy()
    patches[:, 12:16] = patches[:, 8:12]
    apply = jax.jit(lambda patches: model.apply(params, patches, layout, merging=merging))
    before, after = apply(patches), apply(changed)
    text = np.flatnonzero(layout.kind[0] == Kind.TEXT)
    early, late = (
        np.asarray(out.hidden[0])[np.asarray(out.survivor[0])[text]] for out in (before, after)
    )
    np.testing.assert_allclose(early[:4], late[:4], atol=1e-5)
    assert np.abs(early[4] - late[4]).max() > 1e-4
    if merging:
        assert int((before.layout.kind == Kind.PATCH).sum()) < int(
            (after.layout.kind == Kind.PATCH).sum()
        )


def test_gradients_are_finite_and_reach_every_parameter(model, params):
    patches, layout = inputs()

    def loss(p):
        out = model.apply(p, patches, layout, merging=True, buckets=(48, 36))
        logits = model.apply(p, out.hidden, method="head")
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), out.layout.target[..., None], axis=-1
        )[..., 0]
        return -jnp.sum(picked * out.layout.loss_weight)

    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_merge_layers_never_change_the_parameters(params):
    patches, layout = inputs()
    for merge in (Merging(), Merging((MergeLayer(1), MergeLayer(2)))):
        model = Elva(with_merging(CONFIG, merge))
        shapes = jax.eval_shape(
            lambda model=model: nn.unbox(
                model.init(jax.random.key(0), patches, layout, merging=True)
            )
        )
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_no_tracer_leaks(model, params):
    patches, layout = inputs()
    with jax.checking_leaks():
        jax.jit(
            lambda p: model.apply(p, patches, layout, merging=True, buckets=(48, 36)).hidden
        ).lower(params)


def test_the_group_model_is_the_models_configuration():
    c = schema.model()
    c.update(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
    )
    c.update(rope_theta=10_000.0, max_position=128, patch_size=2, patch_width=8, dtype="float32")
    c.merge_layers, c.merge_policies, c.merge_thresholds, c.merge_ratios = (
        (0, 2),
        ("threshold", "ratio"),
        (0.9, 0.6),
        (0.5, 0.5),
    )
    assert typed(ModelConfig, c) == CONFIG
    c.update(
        rope_scaling="yarn",
        rope_factor=4,
        rope_original_max_position=64,
        attention_bias=False,
        tie_embeddings=False,
        rms_norm_eps=1e-5,
    )
    c.update(patch_embed="naive", patch_heads=2, remat="dots", attention="xla", merge_lines=True)
    changed = typed(ModelConfig, c)
    assert rope_scaling(changed) == RopeScaling("yarn", 4.0, 64)
    assert (changed.attention_bias, changed.tie_embeddings, changed.rms_norm_eps) == (
        False,
        False,
        1e-5,
    )
    assert (changed.patch_size, changed.patch_width, changed.patch_embed, changed.patch_heads) == (
        2,
        8,
        "naive",
        2,
    )
    assert (changed.remat, changed.attention) == ("dots", "xla")
    assert merging_of(changed) == Merging(merging_of(CONFIG).layers, merge_lines=True)
    c.merge_ratios = (0.5,)
    with pytest.raises(ConfigError, match=r"model\.merge_ratios: needs one entry"):
        merging_of(typed(ModelConfig, c))


def test_independent_turns_equal_each_turn_alone(forward, params):
    """Two questions about one video, with merging: the hidden states and targets of each alone."""
    patches, _ = inputs()
    rng = np.random.default_rng(3)
    shared = [Text(rng.integers(0, VOCAB, 2)), Clip([(2, 2)] * 3)]
    turns = [
        (Text(rng.integers(0, VOCAB, n)), Text(rng.integers(0, VOCAB, 2), weight=1.0))
        for n in (3, 5)
    ]
    branches = [
        dataclasses.replace(part, turn=k) for k, turn in enumerate(turns, start=1) for part in turn
    ]
    together = pack([build_layout([*shared, *branches])], LENGTH)
    alone = [pack([build_layout([*shared, *turn])], LENGTH) for turn in turns]
    out = forward(params, np.stack([patches[0]] * 3), batch(together, *alone), merging=True)
    for k in (1, 2):
        mine, theirs = out.layout.turn[0] == k, out.layout.position[k] >= 2 + 3 * 7
        np.testing.assert_array_equal(out.layout.position[0][mine], out.layout.position[k][theirs])
        np.testing.assert_array_equal(out.layout.target[0][mine], out.layout.target[k][theirs])
        np.testing.assert_allclose(out.hidden[0][mine], out.hidden[k][theirs], atol=1e-5)
