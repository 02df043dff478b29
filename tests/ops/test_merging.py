"""Hierarchical merging against a plain NumPy version of the rule, and its invariants."""

import doctest
from decimal import ROUND_CEILING, Decimal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import ConfigError
from elva_jax.ops import merging
from elva_jax.ops.merging import MergeLayer, compose, merge
from elva_jax.video.counts import count
from elva_jax.video.hybrid import choose_high
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack

S, D = 96, 4
GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2)]

compiled = jax.jit(merge, static_argnames=("rule", "merge_lines", "survivor", "bucket"))


def run(*args, **kwargs):
    """One merging layer, its result in NumPy."""
    return jax.device_get(compiled(*args, **kwargs))


def clip(grids):
    return [Text([7, 8]), Clip(grids), Text([9]), Text([3], weight=1.0)]


@st.composite
def rows(draw):
    """A packed row of one to three examples: mixed grids, several clips, images."""
    layouts, left = [], S
    for _ in range(draw(st.integers(1, 3))):
        parts = [
            part
            for _ in range(draw(st.integers(1, 2)))
            for part in clip(draw(st.lists(st.sampled_from(GRIDS), min_size=1, max_size=7)))
        ]
        layout = build_layout(parts)
        if layout.length <= left:
            layouts.append(layout)
            left -= layout.length
    return layouts or [build_layout(clip([(2, 2), (1, 2), (2, 2)]))]


def features(seed, length=S):
    """Small integers: dot products are exact, so equal similarities are equal in NumPy and XLA."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1, 3, (length, D)).astype(np.float32), rng.integers(1, 6, length).astype(
        np.float32
    )


def cosine(a, b):
    scale = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return np.sum(a * b) / scale if scale > 0 else np.float32(0)


def pairs_of_rule(layout, rule, mergeable, follower, score):
    """The tokens that merge into their follower, whatever the bucket."""
    merged = set()
    if rule.policy in ("threshold", "both"):
        merged = {i for i in follower if score[i] > np.float32(rule.threshold)}
    if rule.policy in ("ratio", "both"):
        for segment in set(layout.segment[layout.segment > 0]):
            mine = [
                i for i in range(len(layout.kind)) if mergeable[i] and layout.segment[i] == segment
            ]
            target = int((Decimal(str(rule.ratio)) * len(mine)).to_integral_value(ROUND_CEILING))
            for i in sorted((i for i in mine if i in follower), key=lambda i: (-score[i], i)):
                if len(mine) - len(merged & set(mine)) <= target:
                    break
                merged.add(i)
    if rule.policy == "pool":
        for tube in {int(layout.tube[i]) for i in range(len(layout.kind)) if mergeable[i]}:
            members = [
                i for i in range(len(layout.kind)) if mergeable[i] and layout.tube[i] == tube
            ]
            share = [int(Decimal(str(rule.ratio)) * k) for k in range(len(members) + 1)]
            merged |= {i for k, i in enumerate(members[:-1]) if share[k + 1] == share[k]}
    return merged


def plain_merge(x, layout, size, rule, merge_lines=False, bucket=None, survivor="last"):
    """The rule token by token: groups of old indices by survivor, and forced merges."""
    mergeable = [k == Kind.PATCH or (merge_lines and k == Kind.LINE) for k in layout.kind]
    follower = {}
    for i in range(len(x)):
        if mergeable[i]:
            later = [
                j for j in range(i + 1, len(x)) if mergeable[j] and layout.tube[j] == layout.tube[i]
            ]
            if later:
                follower[i] = later[0]
    score = {i: cosine(x[i], x[j]) for i, j in follower.items()}
    merged = pairs_of_rule(layout, rule, mergeable, follower, score)
    used = [i for i in range(len(x)) if layout.kind[i] != Kind.PAD]
    forced = 0
    for i in sorted((i for i in follower if i not in merged), key=lambda i: (-score[i], i)):
        if bucket is None or len(used) - len(merged) <= bucket:
            break
        merged.add(i)
        forced += 1
    groups = {}
    for i in used:
        last = i
        while last in merged:
            last = follower[last]
        groups.setdefault(last, []).append(i)
    if survivor == "first":
        groups = {min(group): group for group in groups.values()}
    return dict(sorted(groups.items())), forced


# Few combinations, used by all tests: each one is a program to compile.
RULES = (
    MergeLayer(0, "threshold", 0.6),
    MergeLayer(0, "ratio", ratio=0.3),
    MergeLayer(0, "both", 0.6, 0.7),
    MergeLayer(0, "pool", ratio=0.4),
)
rules = st.sampled_from(RULES)
BUCKET = 48


@given(
    rows(),
    st.integers(0, 10**6),
    rules,
    st.sampled_from(
        [
            (False, None, "last"),
            (False, BUCKET, "last"),
            (True, BUCKET, "last"),
            (True, BUCKET, "first"),
        ]
    ),
)
def test_equals_the_plain_reading(layouts, seed, rule, options):
    merge_lines, bucket, survivor = options
    layout = pack(layouts, S)
    x, size = features(seed)
    got = run(x, layout, size, rule, merge_lines=merge_lines, survivor=survivor, bucket=bucket)
    groups, forced = plain_merge(x, layout, size, rule, merge_lines, bucket, survivor)
    assert got.stats.forced == forced
    assert got.stats.tokens == (layout.kind != Kind.PAD).sum()
    if (
        bucket is not None
        and sum(count(one, merge_lines=merge_lines).merged_tokens for one in layouts) > bucket
    ):
        assert got.stats.overflow == len(groups) - bucket
        assert np.isnan(got.x).all()
        return
    capacity, kept = S if bucket is None else bucket, list(groups)
    assert got.stats.overflow == 0
    assert got.stats.survivors == len(kept)
    assert got.x.shape == (capacity, D)
    means = [
        np.average(x[group].astype(np.float64), axis=0, weights=size[group])
        for group in groups.values()
    ]
    np.testing.assert_allclose(got.x[: len(kept)], means, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        got.size[: len(kept)], [size[group].sum() for group in groups.values()]
    )
    for name, field in layout._asdict().items():
        padding = -1 if name in ("patch_index", "frame", "row", "tube", "cell") else 0
        new = getattr(got.layout, name)
        assert new.dtype == field.dtype
        np.testing.assert_array_equal(new[: len(kept)], field[kept], err_msg=name)
        assert (new[len(kept) :] == padding).all()
    assert not got.size[len(kept) :].any()
    assert not got.x[len(kept) :].any()
    survivor = np.full(S, -1)
    for new, group in enumerate(groups.values()):
        survivor[group] = new
    np.testing.assert_array_equal(got.survivor, survivor)
    mergeable = (layout.kind == Kind.PATCH) | (merge_lines & (layout.kind == Kind.LINE))
    assert got.stats.entering == mergeable.sum()
    assert got.stats.kept == mergeable[kept].sum()


def unlike_neighbours(layout):
    """Random features with the signs of one frame opposite to those of the next."""
    x = np.abs(np.random.default_rng(0).normal(size=(S, D)) * 1e3)
    return (x * np.where(layout.frame % 2 == 0, 1, -1)[:, None]).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_identity_bit_for_bit_when_nothing_is_similar(dtype):
    layout = pack([build_layout(clip([(2, 2)] * 6))], S)
    x = jnp.asarray(unlike_neighbours(layout), dtype)
    size = np.random.default_rng(0).integers(1, 20, S).astype(np.float32)
    got = run(x, layout, size, MergeLayer(0, "threshold", 0.6))
    used = int((layout.kind != Kind.PAD).sum())
    bits = np.uint32 if dtype == jnp.float32 else np.uint16
    np.testing.assert_array_equal(got.x[:used].view(bits), np.asarray(x)[:used].view(bits))
    np.testing.assert_array_equal(got.survivor, np.where(layout.kind != Kind.PAD, np.arange(S), -1))
    assert got.stats.kept == got.stats.entering == 24


@pytest.mark.parametrize("merge_lines", [False, True])
@pytest.mark.parametrize("policy", ["threshold", "both"])
def test_static_video_leaves_one_token_a_tube(policy, merge_lines):
    frames, grid = 9, (2, 2)
    layout = pack([build_layout(clip([grid] * frames))], S)
    tube_features = (
        np.random.default_rng(0).normal(size=(layout.tube.max() + 2, D)).astype(np.float32)
    )
    x = tube_features[layout.tube]
    got = run(
        x, layout, np.ones(S, np.float32), MergeLayer(0, policy, 0.6, 0.7), merge_lines=merge_lines
    )
    patches = got.layout.kind == Kind.PATCH
    lines = got.layout.kind == Kind.LINE
    assert patches.sum() == 4
    assert lines.sum() == (2 if merge_lines else 2 * frames)
    assert (got.size[patches] == frames).all()
    assert (
        got.layout.frame[patches] == frames - 1
    ).all()  # each stands at the last member of its run
    assert (got.layout.kind == Kind.FRAME).sum() == frames
    np.testing.assert_allclose(got.x[patches], tube_features[got.layout.tube[patches]], rtol=1e-6)


@pytest.mark.parametrize("policy", ["interleave", "ends"])
def test_a_static_video_at_two_resolutions_merges_each_apart(policy):
    """Hybrid resolution: high frames merge with high ones and low with low, whatever is between."""
    is_high = choose_high(4, 3, policy)
    layout = pack([build_layout(clip([(2, 2) if high else (1, 2) for high in is_high]))], S)
    x = (
        np.random.default_rng(0)
        .normal(size=(layout.tube.max() + 2, D))
        .astype(np.float32)[layout.tube]
    )
    got = run(x, layout, np.ones(S, np.float32), MergeLayer(0, "threshold", 0.6), merge_lines=False)
    patches = got.layout.kind == Kind.PATCH
    ends = [
        (int(np.flatnonzero(is_high == high)[-1]), count)
        for high, count in ((True, 4.0), (False, 3.0))
    ]
    tokens = list(zip(got.layout.frame[patches].tolist(), got.size[patches].tolist(), strict=True))
    assert tokens == sorted([ends[0]] * 4 + [ends[1]] * 2)
    assert (got.layout.kind == Kind.FRAME).sum() == 7


@given(rows(), st.integers(0, 10**6), rules, rules)
def test_sizes_sum_to_the_patches_through_two_layers(layouts, seed, first, second):
    layout = pack(layouts, S)
    x, _ = features(seed)
    a = run(x, layout, np.ones(S, np.float32), first)
    b = run(a.x, a.layout, a.size, second)
    assert b.size[b.layout.kind == Kind.PATCH].sum() == (layout.kind == Kind.PATCH).sum()
    survivor = np.asarray(compose(a.survivor, jnp.asarray(b.survivor)))
    used = layout.kind != Kind.PAD
    assert (survivor[~used] == -1).all()
    np.testing.assert_array_equal(np.bincount(survivor[used], minlength=S), b.size)
    assert (b.layout.tube[survivor[used]] == layout.tube[used]).all()


@given(rows(), st.integers(0, 10**6), rules, st.randoms(use_true_random=False))
def test_permuting_tubes_changes_nothing(layouts, seed, rule, random):
    layout = pack(layouts, S)
    names = list(range(int(layout.tube.max()) + 1))
    random.shuffle(names)
    renamed = layout._replace(
        tube=np.where(layout.tube >= 0, np.asarray(names)[layout.tube], -1).astype(np.int32)
    )
    x, size = features(seed)
    a, b = run(x, layout, size, rule, bucket=BUCKET), run(x, renamed, size, rule, bucket=BUCKET)
    for got, want in zip(
        jax.tree.leaves(b._replace(layout=None)),
        jax.tree.leaves(a._replace(layout=None)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(a.layout.position, b.layout.position)


@given(rows(), st.integers(0, 10**6), rules, st.booleans())
def test_packing_equals_each_example_alone(layouts, seed, rule, floats):
    layout = pack(layouts, S)
    x, size = features(seed)
    if floats:
        x = x + np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    packed = run(x, layout, size, rule)
    start = 0
    for k, alone in enumerate(layouts):
        x_alone, size_alone = np.zeros_like(x), np.ones_like(size)
        x_alone[: alone.length] = x[start : start + alone.length]
        size_alone[: alone.length] = size[start : start + alone.length]
        start += alone.length
        one = run(x_alone, pack([alone], S), size_alone, rule)
        mine, own = packed.layout.segment == k + 1, one.layout.segment == 1
        np.testing.assert_array_equal(packed.x[mine], one.x[own])
        np.testing.assert_array_equal(packed.size[mine], one.size[own])
        np.testing.assert_array_equal(packed.layout.position[mine], one.layout.position[own])


@given(rows(), st.integers(0, 10**6), rules)
def test_a_bucket_that_holds_never_changes_the_result(layouts, seed, rule):
    layout = pack(layouts, S)
    x, size = features(seed)
    free = run(x, layout, size, rule)
    for bucket in (BUCKET, 128):
        if free.stats.survivors > bucket:
            continue
        got = run(x, layout, size, rule, bucket=bucket)
        n = int(free.stats.survivors)
        for a, b in zip(
            jax.tree.leaves((got.x, got.layout, got.size)),
            jax.tree.leaves((free.x, free.layout, free.size)),
            strict=True,
        ):
            assert a.shape[0] == bucket
            np.testing.assert_array_equal(a[:n], b[:n])
        np.testing.assert_array_equal(got.survivor, free.survivor)
        assert got.stats == free.stats._replace(padding=got.stats.padding)
        assert got.stats.padding == bucket - n
        assert got.stats.forced == 0


def test_forced_merges_are_counted_and_the_floor_always_fits():
    never = MergeLayer(0, "threshold", 0.6)
    for words in (0, 3, 4):  # with 4 the merged tokens fill the bucket exactly
        example = build_layout(
            [Text([5] * words), *clip([(2, 2)] * 12)] if words else clip([(2, 2)] * 12)
        )
        assert count(example).merged_tokens == BUCKET - 4 + words
        layout = pack([example], S)
        x = unlike_neighbours(layout)
        got = run(x, layout, np.ones(S, np.float32), never, bucket=BUCKET)
        assert got.stats.forced == example.length - BUCKET
        assert got.stats.survivors == BUCKET
        assert got.stats.overflow == 0
        assert np.isfinite(got.x).all()
    crowded = build_layout([Text([5] * 6), *clip([(2, 2)] * 12)])
    got = run(x, pack([crowded], S), np.ones(S, np.float32), never, bucket=BUCKET)
    assert got.stats.overflow == 2
    assert got.stats.survivors == BUCKET
    assert np.isnan(got.x).all()
    assert (got.survivor[: crowded.length] == -1).sum() == 2


@jax.jit
@jax.jacobian
def jacobian(x, layout, size):
    """[C, S, D]: what each survivor depends on."""
    return jnp.sum(merge(x, layout, size, MergeLayer(0, "threshold", 0.6)).x, axis=-1)


@given(rows(), st.integers(0, 10**6), st.integers(0, S - 1))
def test_survivors_never_look_ahead(layouts, seed, cut):
    """By threshold: later tokens may decide whether a token stays, never what its mean holds."""
    layout = pack(layouts, S)
    x, size = features(seed)
    future = np.where(np.arange(S)[:, None] > cut, features(seed + 1)[0], x)
    rule = MergeLayer(0, "threshold", 0.6)
    a, b = run(x, layout, size, rule), run(future, layout, size, rule)
    held = []
    for merged in (a, b):
        position, segment, n = (
            merged.layout.position,
            merged.layout.segment,
            int(merged.stats.survivors),
        )
        held.append({(int(segment[i]), int(position[i])): merged.x[i] for i in range(n)})
    old = {(int(layout.segment[i]), int(layout.position[i])) for i in range(cut + 1)}
    common = old & held[0].keys() & held[1].keys()
    for key in common:
        np.testing.assert_array_equal(held[0][key], held[1][key])
    text = {
        (int(layout.segment[i]), int(layout.position[i]))
        for i in range(cut + 1)
        if layout.kind[i] in (Kind.TEXT, Kind.FRAME)
    }
    assert text <= common

    gradient = jacobian(x, layout, size)
    reach = np.abs(np.asarray(gradient)).sum(-1) > 0
    place = {
        (int(layout.segment[i]), int(layout.position[i])): i
        for i in range(S)
        if layout.kind[i] != Kind.PAD
    }
    for new, key in enumerate(held[0]):
        assert not reach[new, place[key] + 1 :].any()


def test_gradient_equals_finite_differences_and_the_weights():
    layout = pack([build_layout(clip([(2, 2)] * 5)), build_layout(clip([(1, 2)] * 3))], S)
    rng = np.random.default_rng(1)
    x, size = rng.normal(size=(S, D)).astype(np.float32), rng.integers(1, 4, S).astype(np.float32)
    weight = rng.normal(size=(BUCKET, D)).astype(np.float32)
    rule = MergeLayer(0, "both", 0.6, 0.7)

    @jax.jit
    def objective(x):
        return jnp.sum(compiled(x, layout, size, rule, bucket=BUCKET).x * weight)

    merged = run(x, layout, size, rule, bucket=BUCKET)
    assert merged.stats.kept < merged.stats.entering
    gradient = np.asarray(jax.grad(objective)(x))
    survivor = merged.survivor
    share = np.where(survivor >= 0, size / np.maximum(merged.size, 1)[survivor], 0)
    np.testing.assert_allclose(gradient, share[:, None] * weight[survivor], rtol=1e-5, atol=1e-6)
    for i, j in [(2, 0), (4, 1), (12, 3), (30, 2)]:
        step = np.zeros_like(x)
        step[i, j] = 1e-2  # small enough that no decision flips; the map is linear in between
        difference = (objective(x + step) - objective(x - step)) / 2e-2
        np.testing.assert_allclose(difference, gradient[i, j], atol=2e-3)


@pytest.mark.parametrize(
    ("ratio", "frames", "left"),
    [(0.1, 30, 3), (0.29, 25, 8), (1 / 3, 9, 3), (1.0, 5, 5), (0.0, 6, 1)],
)
def test_ratio_is_an_exact_ceiling_above_the_floor(ratio, frames, left):
    layout = pack([build_layout([Clip([(1, 1)] * frames)])], S)
    got = run(features(0)[0], layout, np.ones(S, np.float32), MergeLayer(0, "ratio", 0.6, ratio))
    assert got.stats.kept == left


@pytest.mark.parametrize(
    ("ratio", "windows"),
    [(0.75, [2, 1, 1, 2, 1, 1]), (0.5, [2, 2, 2, 2]), (1 / 3, [3, 3, 2]), (0.12, [8])],
)
def test_pool_is_a_plain_average_over_time(ratio, windows):
    frames = 8
    layout = pack([build_layout([Clip([(2, 2)] * frames)])], S)
    x = np.random.default_rng(0).normal(size=(S, D)).astype(np.float32)
    got = run(x, layout, np.ones(S, np.float32), MergeLayer(0, "pool", ratio=ratio), bucket=80)
    patches, ends = got.layout.kind == Kind.PATCH, np.cumsum(windows)
    np.testing.assert_array_equal(got.layout.frame[patches], np.repeat(ends - 1, 4))
    np.testing.assert_array_equal(got.size[patches], np.repeat(windows, 4))
    by_frame = x[layout.kind == Kind.PATCH].reshape(frames, 4, D).astype(np.float64)
    expected = [by_frame[end - n : end].mean(0) for n, end in zip(windows, ends, strict=True)]
    np.testing.assert_allclose(got.x[patches].reshape(-1, 4, D), expected, rtol=1e-5, atol=1e-6)
    assert got.stats.forced == 0


def test_vmap_under_jit_equals_one_by_one():
    layouts = [pack([build_layout(clip([(2, 2)] * n))], S) for n in (3, 5, 8)]
    batch = TokenLayout(*(np.stack(fields) for fields in zip(*layouts, strict=True)))
    x_size = [features(k) for k in range(3)]
    x, size = (np.stack(arrays) for arrays in zip(*x_size, strict=True))
    rule = MergeLayer(0, "both", 0.6, 0.7)
    together = jax.jit(jax.vmap(partial(merge, rule=rule, bucket=BUCKET)))(x, batch, size)
    for k in range(3):
        alone = run(x[k], layouts[k], size[k], rule, bucket=BUCKET)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a[k], b)


def test_broken_features_merge_last_and_stay_visible():
    """NaN and zero vectors are not similar to anything; no threshold averages a NaN away."""
    layout = pack([build_layout([Clip([(1, 1)] * 4)])], S)
    x = np.ones((S, D), np.float32)
    patches = np.flatnonzero(layout.kind == Kind.PATCH)
    x[patches[1]], x[patches[3]] = np.nan, 0
    got = run(x, layout, np.ones(S, np.float32), MergeLayer(0, "threshold", 0.6))
    assert got.stats.kept == 4
    ratio = run(x, layout, np.ones(S, np.float32), MergeLayer(0, "ratio", 0.6, 0.75))
    assert ratio.survivor[patches[2]] == ratio.survivor[patches[3]]  # cosine 0 comes before NaN


def similar_at_even_places(neighbors, rule):
    """A policy that no name stands for."""
    return (neighbors.similarity > rule.threshold) & (neighbors.place % 2 == 0)


def test_a_function_is_a_policy():
    layout = pack([build_layout(clip([(2, 2)] * 5)), build_layout(clip([(1, 1)] * 2))], S)
    got = run(np.ones((S, D), np.float32), layout, np.ones(S, np.float32), EVEN, bucket=80)
    patches = got.layout.kind == Kind.PATCH
    np.testing.assert_array_equal(got.layout.frame[patches], [1] * 4 + [3] * 4 + [4] * 4 + [6])
    np.testing.assert_array_equal(got.size[patches], [2] * 8 + [1] * 4 + [2])


EVEN = MergeLayer(0, similar_at_even_places, 0.6)


def test_the_example_of_merge_runs():
    result = doctest.testmod(merging)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("rule", "bucket"),
    [
        (MergeLayer(0, "mean"), None),
        (MergeLayer(0), 0),
        (MergeLayer(0, lambda neighbors, rule: neighbors.similarity), None),
    ],
)
def test_refuses_what_cannot_work(rule, bucket):
    layout = build_layout([Clip([(1, 1)])])
    with pytest.raises(ConfigError, match="merge"):
        merge(np.ones((3, D), np.float32), layout, np.ones(3, np.float32), rule, bucket=bucket)


LAYERS = st.lists(
    st.tuples(
        st.sampled_from(["threshold", "ratio", "both", "pool"]),
        st.sampled_from([0.1, 0.34, 0.5, 0.9]),
    ),
    max_size=3,
)


@given(rows(), LAYERS, st.integers(0, 99))
def test_merging_layers_leave_no_more_than_an_example_was_counted_for(layouts, layers, seed):
    """For each example of a packed row, and exactly that many where a ratio alone decides."""
    x, size = features(seed)
    x = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    layout = pack(layouts, S)
    for policy, ratio in layers:
        out = run(x, layout, size, MergeLayer(0, policy, 2.0, ratio))  # no cosine is above 2
        x, layout, size = out.x, out.layout, out.size
    for number, one in enumerate(layouts, start=1):
        left, most = (
            int((layout.segment == number).sum()),
            count(one, merge_lines=False, merges=layers).merged_tokens,
        )
        if any(policy != "threshold" for policy, _ in layers):
            assert left <= most
        if layers and all(policy in ("ratio", "both") for policy, _ in layers):
            assert left == most
