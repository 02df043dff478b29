"""Tests of hybrid resolution: the choice of high-resolution frames, and the pixels."""

import re
import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import ConfigError
from elva_jax.video.hybrid import (
    POLICIES,
    Hybrid,
    SizedFrame,
    assign_resolution,
    choose_high,
    complete,
    default_low_edge,
    draw_sizes,
    frame_change,
    thumbnail,
)
from elva_jax.video.layout import Clip, Kind, build_layout
from elva_jax.video.read import read_frames
from elva_jax.video.resize import LazyFrame, resize_frame, target_size

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(any)
CHANGES = st.lists(
    st.integers(0, 5), min_size=1, max_size=60
)  # few distinct values, so that ties occur


def scene(num_high, changes):
    """The rule: repeatedly take the greatest remaining change, the earliest of equals."""
    left = {t: float("inf") if t == 0 else change for t, change in enumerate(changes)}
    chosen = set()
    while len(chosen) < num_high:
        best = max(left.values())
        chosen.add(min(t for t, change in left.items() if change == best))
        left = {t: change for t, change in left.items() if t not in chosen}
    return [t in chosen for t in range(len(changes))]


@given(COUNTS, st.sampled_from(POLICIES))
def test_counts_of_high_and_low_frames(counts, policy):
    high = choose_high(*counts, policy, np.arange(sum(counts)) % 3.0)
    assert high.dtype == bool
    assert (int(high.sum()), int((~high).sum())) == counts


@given(COUNTS)
def test_interleave_is_even(counts):
    """Any interval has the video's share of high frames, within one frame at each end."""
    high = choose_high(*counts)
    share = counts[0] / len(high)
    drift = np.cumsum(high) - share * np.arange(1, len(high) + 1)
    assert np.abs(drift).max() <= 1


@given(COUNTS)
def test_ends_are_high_and_the_middle_is_low(counts):
    high = choose_high(*counts, "ends")
    low = np.flatnonzero(~high)
    if counts[1]:
        assert (np.diff(low) == 1).all()
        assert low[0] - (len(high) - 1 - low[-1]) in (
            0,
            1,
        )  # an odd number has one more at the start


@given(CHANGES, st.data())
def test_scene_chooses_the_greatest_changes(changes, data):
    num_high = data.draw(st.integers(0, len(changes)))
    change = np.asarray([np.inf, *changes[1:]])
    assert choose_high(num_high, len(changes) - num_high, "scene", change).tolist() == scene(
        num_high, changes
    )


def test_worked_examples():
    assert choose_high(2, 2).tolist() == [False, True, False, True]
    assert choose_high(1, 2).tolist() == [False, True, False]
    assert choose_high(3, 0).tolist() == [True] * 3
    assert choose_high(0, 3).tolist() == [False] * 3
    assert choose_high(3, 4, "ends").tolist() == [True, True, False, False, False, False, True]
    assert choose_high(2, 3, "scene", np.array([np.inf, 1, 0, 3, 1])).tolist() == [
        True,
        False,
        False,
        True,
        False,
    ]


def of(high, low, high_edge=672, low_edge=336, policy="interleave"):
    return Hybrid(
        high_frames=high, low_frames=low, high_edge=high_edge, low_edge=low_edge, policy=policy
    )


@given(st.integers(1, 80), COUNTS, st.sampled_from(POLICIES))
def test_share_of_high_frames_is_kept_for_any_number_of_frames(total, counts, policy):
    """For any number of frames the share of high frames is kept; at least one is high if any is."""
    reduced = [
        SizedFrame(f"high {t}", f"low {t}", np.full((2, 2), t, np.uint8)) for t in range(total)
    ]
    sizes, numbers = zip(
        *(frame.split() for frame in assign_resolution(reduced, of(*counts, policy=policy))),
        strict=True,
    )
    assert list(map(int, numbers)) == list(range(total))
    wanted = total * counts[0] / sum(counts)
    assert abs(sizes.count("high") - max(wanted, min(counts[0], 1))) <= 0.5


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.booleans(), st.integers(0, 9))
def test_each_frame_is_resized_straight_from_the_decoded_one(
    height, width, low_edge, upscale, seed
):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    reduced = draw_sizes(
        LazyFrame.from_array(frame),
        Hybrid(high_frames=1, low_frames=1, high_edge=64, low_edge=low_edge),
        patch_size=8,
        upscale=upscale,
    )
    for got, edge in ((reduced.high, 64), (reduced.low, low_edge)):
        size = target_size(height, width, longest_edge=edge, patch_size=8, upscale=upscale)
        np.testing.assert_array_equal(got, resize_frame(frame, size))
    assert reduced.gray is None


def test_change_compares_mean_gray_levels():
    """Compares with the luma of ITU-R BT.601, averaged over blocks of 3 x 2 pixels."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 96, 64, 3), np.uint8)
    frames[2:4] = frames[1]
    gray = (frames @ [0.299, 0.587, 0.114]).reshape(6, 32, 3, 32, 2).mean((2, 4))
    np.testing.assert_allclose([thumbnail(frame) for frame in frames], gray, atol=2)
    change = frame_change([thumbnail(frame) for frame in frames])
    assert change[0] == np.inf
    assert change[2:4].tolist() == [0, 0]
    np.testing.assert_allclose(
        change[[1, 4, 5]], np.abs(np.diff(gray, axis=0)).sum((1, 2))[[0, 3, 4]], rtol=0.05
    )
    for edges in ((64, 32), (16, 8)):
        reduced = [
            draw_sizes(LazyFrame.from_array(frame), of(3, 3, *edges, "scene"), patch_size=8)
            for frame in frames
        ]
        np.testing.assert_array_equal(frame_change([frame.gray for frame in reduced]), change)


def test_scene_finds_the_cuts_of_a_real_video(clips):
    """Fifteen frames of four scenes: the four high frames are the first ones of the scenes."""
    pictures, starts = (
        np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8),
        (0, 2, 3, 9),
    )
    shown = [np.searchsorted(starts, t, "right") - 1 for t in range(15)]
    frames = [np.kron(pictures[k], np.ones((8, 8, 1), np.uint8)) for k in shown]
    data = clips.encode(range(15), frames=frames, options={"crf": "10"})
    hybrid = Hybrid(high_frames=4, low_frames=11, high_edge=64, low_edge=16, policy="scene")
    reduced = read_frames(
        data,
        num_frames=hybrid.frames,
        transform=lambda frame: draw_sizes(frame, hybrid, patch_size=8),
    ).pixels
    assert [
        t
        for t, frame in enumerate(assign_resolution(reduced, hybrid))
        if frame.shape == (48, 64, 3)
    ] == list(starts)


def test_long_video_is_not_kept_in_memory_at_full_size(clips):
    frames = [np.full((360, 640, 3), 10 * t, np.uint8) for t in range(16)]
    data = clips.encode(range(16), frames=frames, size=(360, 640), options={"preset": "ultrafast"})
    hybrid = Hybrid(high_frames=8, low_frames=8, high_edge=112, low_edge=56, policy="scene")
    tracemalloc.start()
    assert (
        len(
            read_frames(
                data,
                num_frames=16,
                transform=lambda frame: draw_sizes(frame, hybrid, patch_size=28),
            ).pixels
        )
        == 16
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * frames[0].nbytes


@given(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(any), st.sampled_from(POLICIES))
def test_tubes_link_frames_of_the_same_resolution(counts, policy):
    hybrid = of(*counts, 32, 16, policy)
    frames = assign_resolution(
        [
            draw_sizes(LazyFrame.from_array(np.zeros((32, 24, 3), np.uint8)), hybrid, patch_size=8)
            for _ in range(sum(counts))
        ],
        hybrid,
    )
    layout = build_layout(
        [Clip(tuple((frame.shape[0] // 8, frame.shape[1] // 8) for frame in frames))]
    )
    chains = defaultdict(list)
    for index in np.flatnonzero(layout.kind == Kind.PATCH):
        chains[int(layout.tube[index])].append(int(layout.frame[index]))
    high, low = (
        [t for t, frame in enumerate(frames) if frame.shape[0] == edge] for edge in (32, 16)
    )
    # Grids of 4 x 3 and 2 x 2.
    assert sorted(chains.values()) == sorted([high] * 12 * bool(high) + [low] * 4 * bool(low))


def test_missing_values_come_from_the_paper_and_the_stage():
    assert complete(672, 28) is None
    assert complete(672, 28, high_frames=None, policy=None) is None
    assert complete(672, 28, high_frames=8) == Hybrid(
        high_frames=8, low_frames=32, high_edge=672, low_edge=336, policy="interleave"
    )
    assert complete(448, 28, policy="scene") == Hybrid(
        high_frames=32, low_frames=32, high_edge=448, low_edge=224, policy="scene"
    )
    assert complete(1344, 28, low_frames=0) == Hybrid(
        high_frames=32, low_frames=0, high_edge=1344, low_edge=336
    )
    assert complete(448, 28, high_edge=672, low_edge=112) == Hybrid(
        high_frames=32, low_frames=32, high_edge=672, low_edge=112
    )
    assert [default_low_edge(edge, 16) for edge in (9, 16, 48, 64, 70, 5000)] == [
        9,
        16,
        16,
        32,
        32,
        336,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(high_frames=-1), "high_frames=-1: cannot be negative"),
        (dict(low_frames=-2), "low_frames=-2: cannot be negative"),
        (
            dict(high_frames=0, low_frames=0),
            "high_frames=0 and low_frames=0: a video needs at least one frame",
        ),
        (dict(high_edge=0), "high_edge=0: must be at least 1"),
        (dict(low_edge=-5), "low_edge=-5: must be at least 1"),
        (dict(low_edge=700), "low_edge=700 exceeds high_edge=672"),
        (dict(policy="middle"), "policy 'middle' is unknown; use one of interleave, ends, scene"),
    ],
)
def test_invalid_values_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        Hybrid(**arguments)


def test_edge_of_an_unused_resolution_is_not_checked():
    assert Hybrid(high_frames=4, low_frames=0, high_edge=112).frames == 4
    assert Hybrid(high_frames=0, low_frames=4, high_edge=112).frames == 4
