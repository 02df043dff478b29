"""First-fit packing against a plain reading of the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elva_jax.config import base
from elva_jax.data.packing import Rows, Sample, budgets, collate, over
from elva_jax.video.layout import Clip, Counts, Kind, Text, build_layout, count

CAPACITY = Counts(10, 8, 3, 9)
costs = st.lists(st.builds(Counts, st.integers(1, 10), st.integers(0, 8), st.integers(0, 3), st.integers(0, 9)), max_size=30)


def plain_first_fit(costs, number):
    """Row of each example, or None: the first row in which no budget overflows."""
    rows, out = [[] for _ in range(number)], []
    for cost in costs:
        for r, row in enumerate(rows):
            if all(sum(c[d] for c in row) + cost[d] <= CAPACITY[d] for d in range(4)):
                row.append(cost)
                out.append(r)
                break
        else:
            out.append(None)
    return out


@settings(deadline=None)
@given(costs=costs, number=st.integers(1, 5))
def test_first_fit(costs, number):
    rows, placed = Rows(number, CAPACITY), []
    for k, cost in enumerate(costs):
        before = [len(row) for row in rows.samples]
        done = rows.place(k, cost)
        grown = [r for r, row in enumerate(rows.samples) if len(row) > before[r]]
        assert grown == ([grown[0]] if done else [])
        placed.append(grown[0] if done else None)
    assert placed == plain_first_fit(costs, number)
    held = sorted(k for row in rows.samples for k in row)
    assert held == [k for k, row in enumerate(placed) if row is not None]


def test_single_rows_take_one_each():
    rows = Rows(2, CAPACITY, single=True)
    small = Counts(1, 1, 1, 1)
    assert [rows.place(k, small) for k in range(3)] == [True, True, False]
    assert rows.full
    assert rows.samples == [[0], [1]]


def test_budgets_and_what_exceeds_them():
    config = base.base()
    stage = config.stages.s = base.stage()
    stage.data.update(seq_len=100, max_patches=60, max_frames=4)
    assert budgets(config, "s") == Counts(100, 60, 4, 100)
    stage.merging, stage.merge_buckets = True, (0, 80, 70)
    assert budgets(config, "s") == Counts(100, 60, 4, 70)
    assert over(Counts(100, 61, 4, 71), budgets(config, "s")) == ["patches", "floor"]


def sample(value, grids, text=3):
    layout = build_layout([Clip(grids), Text([value] * text)])
    counts = count(layout)
    patches = np.arange(counts.patches, dtype=np.uint8)[:, None] + np.full((1, 12), value, np.uint8)
    return Sample(layout, patches, np.full((counts.frames, 4, 4, 3), value, np.uint8), counts)


def test_collated_rows_point_at_their_own_patches_and_frames():
    samples = [sample(10, [(1, 2), (1, 2)]), sample(50, [(2, 2)]), sample(90, [(1, 1)])]
    capacity = Counts(40, 12, 4, 40)
    batch = collate([samples[:2], samples[2:]], capacity, 12, teacher_size=4)
    layout = batch["layout"]
    assert batch["patches"].shape == (2, 12, 12)
    assert batch["teacher_frames"].shape == (2, 4, 4, 4, 3)
    assert all(field.shape[:2] == (2, 40) for field in layout)
    for r, k, name in ((0, 1, 10), (0, 2, 50), (1, 1, 90)):
        mine = layout.segment[r] == k
        index = layout.patch_index[r][mine & (layout.kind[r] == Kind.PATCH)]
        np.testing.assert_array_equal(batch["patches"][r][index, 0], name + np.arange(len(index)))
        frames = np.unique(layout.frame[r][mine & (layout.frame[r] >= 0)])
        assert np.all(batch["teacher_frames"][r][frames] == name)
    assert not batch["patches"][1, 1:].any()
    assert not batch["teacher_frames"][1, 1:].any()


@pytest.mark.parametrize("teacher_size", [None, 0])
def test_no_teacher_frames_unless_asked(teacher_size):
    assert set(collate([[sample(1, [(1, 1)])]], Counts(10, 2, 1, 10), 12, teacher_size)) == {"patches", "layout"}
