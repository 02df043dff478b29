"""The any-object baseline by hand, and on the annotations of the real data set."""

import numpy as np
import pytest

from elva_jax.evaluation.baselines import any_object, middle_frame
from elva_jax.tools.datasets.moving_shapes import records
from elva_jax.video.clip import ClipSettings, read_clip


@pytest.mark.parametrize(
    ("answer", "options", "named", "expected"),
    [
        (
            "red circle",
            ["red circle", "blue square", "green cross", "red cross"],
            ["Red circle", "the blue square"],
            1 / 2,
        ),
        (
            "red circle",
            ["red circle", "blue square", "green cross", "red cross"],
            ["red circle"],
            1.0,
        ),
        (
            "red cross",
            ["red circle", "blue square", "green cross", "red cross"],
            ["red circle", "blue square"],
            0.0,
        ),
        ("red", ["red", "blue", "green", "cyan"], ["red circle"], 1 / 4),
        ("two", ["one", "two"], [], 1 / 2),
    ],
)
def test_any_object_by_hand(answer, options, named, expected):
    assert any_object(answer, options, named) == pytest.approx(expected)


def test_any_object_on_the_data_set():
    """1/4 if options name no object; more for order and needle, whose answers are in the video."""
    credit = {}
    for index in range(300):
        annotation = records.annotation_of("easy", 0, "test", index, 300)
        for q in annotation["questions"]:
            credit.setdefault(q["family"], []).append(
                any_object(q["answer"], q["options"], annotation["named_objects"])
            )
    for family in ("colour", "shape", "count", "digit", "motion"):
        assert np.mean(credit[family]) == pytest.approx(0.25), family
    assert 0.25 < np.mean(credit["order"]) < 0.75
    assert 0.25 < np.mean(credit["needle"]) < 0.75


@pytest.mark.parametrize(("count", "middle"), [(1, 0), (2, 1), (4, 2), (5, 2)])
def test_middle_frame(count, middle):
    frames = [np.full((8, 16 if i % 2 else 8, 3), i, np.uint8) for i in range(count)]
    settings = ClipSettings(num_frames=count, longest_edge=16, patch_size=8)
    picked = middle_frame(read_clip(frames, settings))
    assert (picked.patches == middle).all()
    assert len(picked.patches) == (2 if middle % 2 else 1)
