"""Attention in both directions within frames, against the rule written out pair by pair."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from elva_jax.errors import ConfigError
from elva_jax.ops.attention import frame_attention, frame_reach
from elva_jax.ops.attention.cached import Cached, cached_attention
from elva_jax.ops.merging import MergeLayer, merge
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, pack

S = 150  # three blocks of queries, the last one not full
GRIDS = [(1, 1), (2, 2), (3, 2), (4, 9)]
attend = jax.jit(frame_attention)
reach_of = jax.jit(frame_reach)
merged = jax.jit(partial(merge, rule=MergeLayer(0, "ratio", ratio=0.5), survivor="first"))


@st.composite
def layouts(draw):
    """A packed row: clips, bare clips, questions in turns of their own; some merged before."""
    examples, left = [], S
    for _ in range(draw(st.integers(1, 3))):
        clips = [
            Clip(draw(st.lists(st.sampled_from(GRIDS), min_size=1, max_size=5)), bare=bare)
            for bare in draw(st.lists(st.booleans(), min_size=1, max_size=2))
        ]
        turns = [Text([5, 6], turn=turn) for turn in range(1, 1 + draw(st.integers(0, 2)))]
        example = build_layout([Text([7, 8]), *clips, Text([9]), *turns])
        if example.length <= left:
            examples.append(example)
            left -= example.length
    layout = pack(examples or [build_layout([Clip([(2, 2)] * 3), Text([9])])], S)
    if draw(st.booleans()):
        x = np.random.default_rng(0).normal(size=(S, 4)).astype(np.float32)
        layout = jax.device_get(merged(x, layout, np.ones(S, np.float32)).layout)
    return layout


def plain_mask(layout):
    """Whether each query may attend to each key."""
    query, key = np.arange(S)[:, None], np.arange(S)[None]
    segment, turn, frame = layout.segment, layout.turn, layout.frame
    same_frame = (frame[query] == frame[key]) & (frame[query] >= 0)
    shared = (turn[key] == 0) | (turn[key] == turn[query])
    return (segment[query] == segment[key]) & shared & ((key <= query) | same_frame)


def inputs(length=S, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(1, length, heads, 8)).astype(np.float32) for heads in (4, 2, 2))


def plain_attention(q, k, v, mask):
    q, k, v = (x[0].astype(np.float64).swapaxes(0, 1) for x in (q, k, v))
    score = q @ np.repeat(k, 2, axis=0).swapaxes(1, 2) / np.sqrt(8)
    weight = np.where(mask, np.exp(score), 0)
    out = weight / weight.sum(-1, keepdims=True) @ np.repeat(v, 2, axis=0)
    return out.swapaxes(0, 1)[None]


@settings(max_examples=10)
@given(layouts())
def test_equals_the_plain_reading(layout):
    reach = reach_of(layout.frame[None])
    got = attend(*inputs(), layout.segment[None], layout.turn[None], reach)
    np.testing.assert_allclose(got, plain_attention(*inputs(), plain_mask(layout)), atol=3e-6)


def test_gradients_equal_those_of_a_dense_mask():
    layout = pack([build_layout([Text([7, 8]), Clip([(2, 2), (4, 9)]), Text([9])])] * 2, S)
    mask, segment = plain_mask(layout)[None, None], layout.segment[None]
    reach = frame_reach(layout.frame[None])

    def gradients(attend):
        return jax.jit(jax.grad(lambda qkv: jnp.sum(attend(*qkv) ** 2)))(inputs())

    got = gradients(lambda q, k, v: frame_attention(q, k, v, segment, None, reach))
    dense = gradients(partial(jax.nn.dot_product_attention, mask=mask))
    for x, y in zip(got, dense, strict=True):
        np.testing.assert_allclose(x, y, atol=3e-5)


def single(length):
    """One example without turns, and its padding."""
    layout = build_layout([Text([7] * 5), Clip([(4, 9)] * 6), Text([8] * 9)])
    return TokenLayout(*(field[None] for field in pack([layout], length)))


@pytest.mark.parametrize(("start", "stop"), [(5, 46), (46, 300)])
def test_a_chunk_of_whole_frames_equals_one_piece(start, stop):
    """Chunks that begin and end where frames do; what comes later is not read."""
    q, k, v = inputs(300)
    layout = single(300)
    reach = frame_reach(layout.frame)
    whole = attend(q, k, v, layout.segment, None, reach)
    part = slice(start, stop)
    later = jnp.arange(300)[None, :, None, None] >= stop
    cached = Cached(*(jnp.where(later, 1e3, x).swapaxes(1, 2) for x in (k, v)))
    own = frame_reach(layout.frame[:, part])
    run = partial(cached_attention, implementation="xla")
    got = jax.jit(run)(q[:, part], k[:, part], v[:, part], cached, start, reach=own)
    used = layout.segment[0, part] > 0
    np.testing.assert_allclose(got[:, used], whole[:, part][:, used], atol=3e-6)


def test_frames_end_where_the_next_begins():
    frame = np.array([[-1, 0, 0, 1, 1, -1, -1, 2], [3, 3, 3, 3, -1, -1, 4, 4]])
    assert frame_reach(frame).tolist() == [[0, 2, 2, 4, 4, 5, 6, 7], [3, 3, 3, 3, 4, 5, 7, 7]]


@pytest.mark.parametrize("implementation", ["auto", "cudnn"])
def test_refused_but_by_xla(implementation):
    q, k, v = inputs(8)
    ids = np.ones((1, 8), np.int32)
    with pytest.raises(ConfigError, match=r"frame_attention: bidirectional needs .* = xla, got"):
        frame_attention(q, k, v, ids, None, ids, implementation=implementation)


def test_refused_where_the_mesh_splits_sequences():
    q, k, v = inputs(8)
    ids = np.ones((1, 8), np.int32)
    mesh = jax.sharding.AbstractMesh((2,), ("context",))
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ConfigError, match=r"does not split sequences \(mesh\.context = 1\)"),
    ):
        frame_attention(q, k, v, ids, None, ids, split=PartitionSpec(None, "context", None))
