"""Tests of batching: the grid of lengths, the split of a prompt, and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import LayoutError
from elva_jax.inference.batching import Lengths, build_rows, grid_batch, grid_length, split_prompt
from elva_jax.video.layout import Clip, Text, build_layout


@given(st.integers(1, 200_000))
def test_grid_length_is_sufficient_close_and_monotone(tokens):
    length = grid_length(tokens)
    assert length >= tokens
    assert length <= max(16, 1.25 * tokens)
    assert grid_length(length) == length
    assert grid_length(tokens + 1) >= length


def test_grid_is_small():
    assert len({grid_length(tokens) for tokens in range(1, 32_769)}) <= 48
    assert [grid_batch(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_steady_lengths_never_decrease_and_are_few():
    lengths, asked = Lengths(steady=True), [60, 61, 55, 66, 30, 90, 91, 60]
    chosen = [lengths("prefix", tokens) for tokens in asked]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 2
    assert all(length >= tokens for length, tokens in zip(chosen, asked, strict=True))
    assert lengths("other", 20) == 24
    assert Lengths()("prefix", 60) == 64


def test_split_after_the_last_clip():
    clip = Clip(((2, 2),))
    prompt = split_prompt([Text((1, 2)), clip, Text((3,)), clip, Text((4,)), Text((5,))])
    assert prompt.prefix == (Text((1, 2)), clip, Text((3,)), clip)
    assert prompt.question == (4, 5)


def test_split_without_clip_keeps_every_token():
    prompt = split_prompt([Text((1, 2)), Text((3,))])
    assert prompt.prefix == (Text((1,)),)
    assert prompt.question == (2, 3)


@pytest.mark.parametrize("parts", [[], [Text((1, 2)), Clip(((1, 1),))], [Text((1,))]])
def test_prompt_without_question_is_refused(parts):
    with pytest.raises(LayoutError, match="add a question after it"):
        split_prompt(parts)


def test_rows_are_layouts_followed_by_padding():
    parts = [[Text((7,)), Clip(((2, 3), (1, 1)))], [Text((7, 8, 9))]]
    patches = [np.full((7, 12), 5, np.uint8), np.zeros((0, 12), np.uint8)]
    rows = build_rows([*parts, parts[0]], [*patches, patches[0]], 12)
    assert rows.layout.kind.shape == (4, 16)
    assert rows.patches.shape == (4, 16, 12)
    assert rows.length.tolist() == [13, 3, 13, 13]
    for i, row in enumerate([*parts, parts[0], parts[0]]):
        expected = build_layout(row)
        for name, values in expected._asdict().items():
            np.testing.assert_array_equal(
                getattr(rows.layout, name)[i, : expected.length], values, err_msg=name
            )
        assert (rows.layout.kind[i, expected.length :] == 0).all()
    assert (rows.patches[0, :7] == 5).all()
    assert (rows.patches[0, 7:] == 0).all()


def test_patches_are_padded_to_whole_frames():
    """N is the number of patches of the row with the most frames, at least one frame.

    It does not equal S, because a tower's cost is proportional to the number of frames.
    """
    clips = [Clip(((2, 2),) * frames, bare=True) for frames in (5, 2)]
    parts, patches = (
        [[Text((7,)), clip] for clip in clips],
        [np.ones((4 * len(clip.grids), 12), np.uint8) for clip in clips],
    )
    rows = build_rows(parts, patches, 12, frame_patches=4)
    assert rows.layout.kind.shape == (2, 24)
    assert rows.patches.shape == (2, 20, 12)
    assert rows.patches.reshape(2, -1).any(1).tolist() == [True, True]
    assert rows.patches[1].sum() == 8 * 12
    assert build_rows(
        [[Text((7,))]], [np.zeros((0, 12), np.uint8)], 12, frame_patches=4
    ).patches.shape == (1, 4, 12)


def test_patches_that_contradict_the_layout_are_refused():
    with pytest.raises(LayoutError, match=r"\(4, 12\).*\(5, 12\)"):
        build_rows([[Clip(((2, 2),))]], [np.zeros((5, 12), np.uint8)], 12)
