"""Tests of guidance by several teachers, and of the clips that a tower of clips sees."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elva_jax.config import schema
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.models.towers.features import tower_features
from elva_jax.tasks.clips import clip_features
from elva_jax.tasks.guidance import Guidance, number_of_clips, tower_flops
from elva_jax.training.task import Content
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, pack

SIGLIP = schema.TeacherConfig(
    image_size=16, patch_size=8, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2
)
EVA = dataclasses.replace(SIGLIP, kind="eva_clip", image_size=12, patch_size=4, hidden_size=12)
TEACHERS = {"siglip": SIGLIP, "eva": dataclasses.replace(EVA, weight=0.25)}
STAGE = schema.StageConfig(loss=schema.LossConfig(tube=0.5, contrastive=0.25))
WIDTH, FRAMES, TOKENS = 8, 4, 32


def guidance(teacher=SIGLIP, **teachers):
    config = schema.Config(
        teacher=teacher,
        teachers=teachers,
        model=schema.ModelConfig(hidden_size=WIDTH, dtype="float32"),
    )
    return Guidance(config, STAGE)


@pytest.fixture(scope="module")
def case():
    """The output of a model for two packed rows, the teachers' frames, and their weights."""
    rng = np.random.default_rng(0)
    rows = [[Clip([(1, 2)] * 3), Text([1, 2]), Clip([(2, 1)])], [Clip([(1, 1)]), Text([3])]]
    layouts = [pack([build_layout(row)], TOKENS) for row in rows]
    out = SimpleNamespace(
        hidden=jnp.asarray(rng.normal(size=(2, TOKENS, WIDTH)), jnp.float32),
        layout=TokenLayout.stack(layouts),
    )
    frames = {
        side: rng.integers(0, 256, (2, FRAMES, side, side, 3), np.uint8)
        for side in (SIGLIP.image_size, EVA.image_size)
    }
    frozen = {}
    for name, teacher in TEACHERS.items():
        pixels = jax.ShapeDtypeStruct(input_shape(teacher), jnp.float32)
        shapes = nn.meta.unbox(jax.eval_shape(make_tower(teacher).init, jax.random.key(0), pixels))
        frozen[name] = jax.tree.map(
            lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"]
        )
    return out, {"teacher_frames": frames}, frozen


def test_losses_of_several_teachers_are_those_of_each_alone_by_weight(case):
    out, batch, frozen = case
    several = guidance(**TEACHERS)
    alone = {
        name: guidance(dataclasses.replace(teacher, weight=1.0))
        for name, teacher in TEACHERS.items()
    }

    def run(params):
        return (
            several.loss(params, frozen, out, batch),
            several.frame_features(params, frozen, out, batch),
            {
                name: each.loss(params[name], {"teacher": frozen[name]}, out, batch)
                for name, each in alone.items()
            },
        )

    params = nn.meta.unbox(jax.jit(several.init)(jax.random.key(7)))
    (total, metrics), (ours, theirs, valid), each = jax.jit(run)(params)
    expected, sums = 0.0, dict.fromkeys(("tube", "contrastive"), 0.0)
    for name, teacher in TEACHERS.items():
        value, terms = each[name]
        expected += teacher.weight * value
        for term, found in terms.items():
            np.testing.assert_allclose(metrics.pop(f"{term}/{name}"), found, rtol=1e-6)
        sums = {term: sums[term] + teacher.weight * terms[term] for term in sums}
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(total, 0.5 * sums["tube"] + 0.25 * sums["contrastive"], rtol=1e-6)
    assert metrics.keys() == sums.keys()
    for term, value in sums.items():
        np.testing.assert_allclose(metrics[term], value, rtol=1e-6)
    assert {name: x.shape for name, x in ours.items()} == {"siglip": (2, 4, 8), "eva": (2, 4, 12)}
    for x in (*ours.values(), *theirs.values()):
        np.testing.assert_allclose(np.linalg.norm(x[valid], axis=-1), 1, rtol=1e-5)


def test_heads_of_the_only_teacher_keep_their_paths():
    alone = jax.eval_shape(guidance().init, jax.random.key(0))
    named = jax.eval_shape(guidance(main=SIGLIP).init, jax.random.key(0))
    unused = guidance(main=SIGLIP, none=dataclasses.replace(EVA, weight=0.0))
    assert set(alone) == {"tube", "frame", "log_temperature"}
    assert set(named) == set(unused.teachers) == {"main"}
    assert jax.tree.structure(named["main"]) == jax.tree.structure(alone)
    assert set(unused.batch_shapes(1, 2)) == {"teacher_frames"}
    assert list(unused.batch_shapes(1, 2)["teacher_frames"]) == [16]


def average(tubelet):
    """A tower of clips that cannot hide what it saw: each step is the mean of its frames."""

    def encode(clips_BxNxHxWx3):
        b, n, *size = clips_BxNxHxWx3.shape
        steps = clips_BxNxHxWx3.reshape(b, n // tubelet, tubelet, *size)
        return steps.astype(jnp.float32).mean((2, 5))[..., None]

    return encode


def one_by_one(frames_FxHxWx3, num_frames, tubelet):
    """The same features for one video alone, by the rule of `tasks.clips`, frame by frame."""
    length = len(frames_FxHxWx3)
    seen = [int((j + 0.5) * length / num_frames) for j in range(num_frames)]
    steps = [
        frames_FxHxWx3[seen[start : start + tubelet]].astype(np.float32).mean((0, 3))
        for start in range(0, num_frames, tubelet)
    ]
    return np.stack([steps[int((i + 0.5) * len(steps) / length)] for i in range(length)])[..., None]


@pytest.mark.parametrize(("num_frames", "tubelet"), [(4, 1), (8, 2)])
def test_clips_do_not_mix_videos(num_frames, tubelet):
    rng = np.random.default_rng(1)
    rows = [[3, 1, 5, 2], [11], [1, 1, 1], []]  # frames of each video or image
    count = 11
    frames = rng.integers(0, 256, (len(rows), count, 2, 2, 3), np.uint8)
    media = np.full((len(rows), count), -1, np.int32)
    expected = np.zeros((len(rows), count, 2, 2, 1), np.float32)
    for r, lengths in enumerate(rows):
        start = 0
        for number, length in enumerate(lengths):
            own = slice(start, start + length)
            media[r, own] = number
            expected[r, own] = one_by_one(frames[r, own], num_frames, tubelet)
            start += length
    run = jax.jit(lambda *arrays: clip_features(average(tubelet), *arrays, num_frames))
    np.testing.assert_allclose(run(frames, media), expected, rtol=1e-5)
    assert number_of_clips({"teacher_media": media}) == 8
    assert number_of_clips({}) == 0


def test_a_vivit_sees_each_packed_video_as_if_it_were_alone():
    vivit = schema.TeacherConfig(
        kind="vivit",
        image_size=8,
        patch_size=4,
        hidden_size=8,
        intermediate_size=16,
        num_layers=2,
        num_heads=2,
        num_frames=4,
        tubelet=2,
        features="last",
    )
    rng, tower = np.random.default_rng(2), make_tower(vivit)
    pixels = jax.ShapeDtypeStruct(input_shape(vivit), jnp.float32)
    shapes = nn.meta.unbox(jax.eval_shape(tower.init, jax.random.key(0), pixels))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    frames = rng.integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    media = np.array([[0, 1, 1, 1, 1], [0, 0, -1, -1, -1]], np.int32)
    several = guidance(vivit=vivit)
    batch = {"teacher_frames": {8: frames}, "teacher_media": media}
    # An image four times; a video of four frames; one of two frames, each twice.
    clips = np.stack([frames[0, [0] * 4], frames[0, 1:], frames[1, [0, 0, 1, 1]]])
    packed, alone = jax.jit(
        lambda: (
            several.features({"vivit": params}, batch, "vivit"),
            tower_features(tower, params, clips),
        )
    )()
    expected = np.zeros_like(packed)
    expected[0, 0] = alone[0, 1]
    expected[0, 1:] = alone[1, [0, 0, 1, 1]]
    expected[1, :2] = alone[2]
    np.testing.assert_allclose(packed, expected, atol=1e-5)
    assert set(several.batch_shapes(2, 5)) == set(batch)


@given(length=st.integers(1, 40), steps=st.integers(1, 16), tubelet=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_frame_reads_a_step_that_covers_it(length, steps, tubelet):
    """As far as the clip has a place for each; otherwise one that is a neighbor's."""
    num_frames = steps * tubelet
    seen = [(2 * j + 1) * length // (2 * num_frames) for j in range(num_frames)]
    assert seen == sorted(seen)
    for i in range(length):
        step = (2 * i + 1) * steps // (2 * length)
        covered = seen[step * tubelet : (step + 1) * tubelet]
        far = min(abs(i - frame) for frame in covered)
        assert far <= (0 if length <= num_frames else length / num_frames)


def test_work_of_a_tower_of_clips_is_counted_by_clips():
    clips = dataclasses.replace(SIGLIP, kind="vivit", num_frames=4, tubelet=2)
    content = Content(frames=100, clips=3)
    assert tower_flops(clips, content) == tower_flops(clips, Content(frames=1, clips=3))
    assert tower_flops(SIGLIP, content) == tower_flops(SIGLIP, Content(frames=100, clips=9))
