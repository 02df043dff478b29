"""Tests of moving_shapes scenes: sampled frames show events, and one frame hides the motion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elva_jax.tools.datasets.moving_shapes.scene import THEMES, center, sample, sampled_frames
from elva_jax.tools.datasets.moving_shapes.style import EASY, STYLES

VIDEO_SPLITS = ("train", "validation", "test")
scenes = st.builds(
    lambda style, split, index: sample(STYLES[style], 3, split, index),
    st.sampled_from(sorted(STYLES)),
    st.sampled_from(VIDEO_SPLITS),
    st.integers(0, 100_000),
)


def visible(thing, frame):
    return thing.enters <= frame < thing.leaves


@given(st.integers(8, 64), st.integers(1, 8))
def test_sampled_frames_are_shown_at_equally_spaced_times(frames, count):
    """Times are 0.5/count, 1.5/count …; frame k is shown from k/frames to (k+1)/frames."""
    for i, k in enumerate(sampled_frames(frames, count)):
        assert k / frames <= (i + 0.5) / count < (k + 1) / frames


@settings(max_examples=300, deadline=None)
@given(scenes)
def test_events_are_visible_in_the_sampled_frames(scene):
    four, eight = sampled_frames(scene.frames, 4), sampled_frames(scene.frames, 8)
    for thing in scene.things:
        assert any(visible(thing, f) for f in four)
        if thing.flash[1]:
            for sampled in (four, eight) if scene.frames <= 16 else (four,):
                assert any(thing.flash[0] <= f < thing.flash[1] for f in sampled)
            assert thing.flash[1] - thing.flash[0] <= 3
        if thing.turns_to:
            assert {f >= thing.turns_at for f in four} == {True, False}
    if scene.digit:
        assert any(scene.digit.enters <= f < scene.digit.leaves for f in four)
    if scene.order:
        seen = [[f for f in four if visible(t, f)] for t in scene.things]
        edge = -1 if scene.order == "leave" else 0
        moments = [frames[edge] for frames in seen]
        assert len(set(moments)) == len(moments)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(STYLES)), st.integers(0, 100_000))
def test_long_clips_hide_a_short_flash(style, index):
    scene = sample(STYLES[style], 3, "long", index)
    (start, stop) = next(t.flash for t in scene.things if t.flash[1])
    assert 32 <= scene.frames <= 64
    assert 0 < start < stop < scene.frames
    assert stop - start <= 3


@settings(max_examples=200, deadline=None)
@given(scenes)
def test_objects_are_inside_and_moving_ones_enter_and_leave(scene):
    for thing in scene.things:
        for frame in range(scene.frames):
            x, y = center(thing, scene, frame)
            if thing.motion:
                assert -thing.reach <= x <= scene.width + thing.reach
                assert -thing.reach <= y <= scene.height + thing.reach
            else:
                assert 0 < x < scene.width
                assert 0 < y < scene.height
    shown = [
        center(t, scene, f) for t in scene.things for f in sampled_frames(scene.frames) if t.motion
    ]
    assert not shown or any(0 <= x <= scene.width and 0 <= y <= scene.height for x, y in shown)


def test_every_theme_occurs_and_digits_and_directions_are_even():
    drawn = [sample(EASY, 0, "train", i) for i in range(2000)]
    assert {s.theme for s in drawn} == set(THEMES)
    digits = np.bincount([s.digit.value for s in drawn if s.digit], minlength=10)
    assert digits.min() > 0.6 * digits.mean()


@pytest.fixture(scope="module")
def movers():
    """Centers of moving objects, [n, 4, 2] as shares of the canvas, and their directions [n].

    The center of an invisible object is (-0.2, -0.2) on whichever side it left.
    """
    places, directions = [], []
    for index in range(12_000):
        scene = sample(EASY, 1, "train", 10 * index + 8)
        for thing in (t for t in scene.things if t.motion):
            places.append([_seen(thing, scene, f) for f in sampled_frames(scene.frames)])
            directions.append(thing.motion)
    return np.array(places), np.array(directions)


def _seen(thing, scene, frame):
    x, y = center(thing, scene, frame)
    hidden = min(x, y, scene.width - x, scene.height - y) < 0.01 - thing.radius
    return (-0.2, -0.2) if hidden else (x / scene.width, y / scene.height)


def best_from_one_frame(places, directions, frame, bins=7):
    """Accuracy on the second half if the first half's top direction per grid cell is guessed."""
    names, label = np.unique(directions, return_inverse=True)
    cell = np.clip(((places[:, frame] + 0.2) / 1.4 * bins).astype(int), 0, bins - 1)
    cell = cell[:, 0] * bins + cell[:, 1]
    half = len(label) // 2
    counts = np.zeros((bins * bins, len(names)))
    np.add.at(counts, (cell[:half], label[:half]), 1)
    return float(np.mean(counts.argmax(1)[cell[half:]] == label[half:]))


@pytest.mark.parametrize("frame", range(4))
def test_one_frame_does_not_reveal_the_sign_of_the_direction(movers, frame):
    places, directions = movers
    for pair in (("left", "right"), ("up", "down")):
        chosen = np.isin(directions, pair)
        assert best_from_one_frame(places[chosen], directions[chosen], frame) < 0.54


@pytest.mark.parametrize("frame", range(4))
def test_one_frame_reveals_the_direction_little_better_than_chance(movers, frame):
    """The exact value is 0.33, above 1/4 because an edge can reveal the axis of an object."""
    assert best_from_one_frame(*movers, frame) < 0.36


def test_two_frames_reveal_the_direction(movers):
    """The smallest shift between consecutive sampled frames nearly always is in that direction."""
    places, directions = movers
    steps = np.diff(places, axis=1)
    inside = ((places > 0) & (places < 1)).all(-1)
    near = inside[:, 1:] & inside[:, :-1] & (np.abs(steps).max(-1) < 0.45)
    assert near.any(1).mean() > 0.96
    total = np.where(near[..., None], steps, 0).sum(1)
    horizontal = np.abs(total[:, 0]) > np.abs(total[:, 1])
    guess = np.where(
        horizontal,
        np.where(total[:, 0] > 0, "right", "left"),
        np.where(total[:, 1] > 0, "down", "up"),
    )
    assert np.mean(guess == directions) > 0.96
