"""Tests of packing against a direct implementation of the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elva_jax.config import schema
from elva_jax.config.stage_schema import DataConfig
from elva_jax.data.collate import PackedCollator
from elva_jax.data.packing import (
    PackingBuffer,
    RowCapacity,
    Sample,
    SingleRows,
    make_packer,
    simulate,
)
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.video.counts import Counts, count
from elva_jax.video.layout import Clip, Kind, Text, build_layout

CAPACITY = RowCapacity(10, 8, 3, 9)
costs = st.lists(
    st.builds(Counts, st.integers(1, 10), st.integers(0, 8), st.integers(0, 3), st.integers(0, 9)),
    max_size=30,
)
MIXED = [Counts(1 + k * 7 % 10, k * 5 % 9, k % 2, 1) for k in range(200)]


def plain_rows(costs, ahead):
    """Rows of example numbers: a row takes the oldest example, then the largest that fits.

    Of equally large examples it takes the older one.
    """
    costs, waiting, rows = list(enumerate(costs)), [], []
    while True:
        while sum(cost[0] for _, cost in waiting) < ahead * CAPACITY.tokens or not waiting:
            if not costs:
                return rows, [k for k, _ in waiting]
            waiting.append(costs.pop(0))
        row = [waiting.pop(0)]
        while True:
            fitting = [
                entry
                for entry in waiting
                if all(
                    sum(cost[d] for _, cost in [*row, entry]) <= CAPACITY[d]
                    for d in range(len(CAPACITY))
                )
            ]
            if not fitting:
                break
            row.append(sorted(fitting, key=lambda entry: -entry[1].tokens)[0])
            waiting.remove(row[-1])
        rows.append([k for k, _ in row])


def packed_rows(costs, ahead):
    buffer, costs, rows = PackingBuffer(CAPACITY, ahead), list(enumerate(costs)), []
    while True:
        while buffer.short:
            if not costs:
                return rows, [k for k, _ in buffer.waiting]
            buffer.add(*costs.pop(0))
        rows.append(buffer.take())


@settings(deadline=None)
@given(costs=costs, ahead=st.sampled_from([0, 0.5, 1, 2, 8]))
def test_rows_follow_the_rule(costs, ahead):
    rows, waiting = packed_rows(costs, ahead)
    assert (rows, waiting) == plain_rows(costs, ahead)
    assert sorted(k for row in [*rows, waiting] for k in row) == list(range(len(costs)))
    for row in rows:
        assert not CAPACITY.exceeded_by(Counts(*np.sum([costs[k] for k in row], axis=0)))


@settings(deadline=None)
@given(costs=costs)
def test_waiting_time_is_bounded_by_the_examples_ahead(costs):
    buffer, entered, rows = PackingBuffer(CAPACITY, 2), {}, 0
    for k, cost in enumerate(costs):
        entered[k] = (rows, len(buffer.waiting))
        buffer.add(k, cost)
        while not buffer.short:
            for taken in buffer.take():
                since, before = entered[taken]
                assert rows - since <= before
            rows += 1


def test_the_lookahead_of_a_stage_fills_its_buffer():
    one = Counts(*(n // 2 for n in CAPACITY))
    for lookahead in (1, 3, 12):
        packer = make_packer(DataConfig(pack_lookahead=lookahead), CAPACITY)
        while packer.short:
            packer.add(None, one)
        assert len(packer.waiting) == 2 * lookahead


def test_without_lookahead_each_row_has_one_example():
    small = Counts(1, 1, 1, 1)
    assert packed_rows([small] * 3, 0) == ([[0], [1], [2]], [])


def test_single_rows_have_one_example_each():
    rows = SingleRows()
    assert rows.short
    for k in range(3):
        rows.add(k, CAPACITY)
    assert not rows.short
    assert [rows.take() for _ in range(2)] == [[0], [1]]
    assert [k for k, _ in rows.waiting] == [2]
    rows.clear()
    assert rows.short


def test_simulation_counts_packed_examples():
    rows, waiting = packed_rows(MIXED, 2)
    packed = simulate(iter(MIXED), CAPACITY, 2)
    taken = [MIXED[k] for row in rows for k in row]
    assert (packed.rows, packed.examples) == (len(rows), len(MIXED) - len(waiting))
    assert packed.token_fill == pytest.approx(
        sum(cost.tokens for cost in taken) / (len(rows) * CAPACITY.tokens)
    )
    assert packed.patch_fill == pytest.approx(
        sum(cost.patches for cost in taken) / (len(rows) * CAPACITY.patches)
    )
    assert packed.most_waiting >= len(waiting)
    assert 1 < packed.longest_wait < packed.most_waiting


def test_capacity_names_the_exceeded_fields():
    config = schema.base()
    stage = config.stages.s = schema.stage()
    stage.data.update(seq_len=100, max_patches=60, max_frames=4)
    assert RowCapacity.of_stage(stage) == Counts(100, 60, 4, 100)
    stage.merging, stage.merge_buckets = True, (0, 80, 70)
    assert RowCapacity.of_stage(stage) == Counts(100, 60, 4, 70)
    assert RowCapacity.of_stage(stage).exceeded_by(Counts(100, 61, 4, 71)) == [
        "patches",
        "merged_tokens",
    ]


BOTH = TeacherFrames(sizes=(4, 6), media=True)


def sample(value, grids, text=3):
    layout = build_layout([Clip(grids), Text([value] * text)])
    counts = count(layout)
    patches = np.arange(counts.patches, dtype=np.uint8)[:, None] + np.full((1, 12), value, np.uint8)
    return Sample(
        layout=layout,
        patches=patches,
        teacher_frames={
            side: np.full((counts.frames, side, side, 3), value, np.uint8) for side in (4, 6)
        },
        media=np.zeros(counts.frames, np.int32),
        counts=counts,
    )


def test_collated_rows_index_their_own_patches_and_frames():
    samples = [sample(10, [(1, 2), (1, 2)]), sample(50, [(2, 2)]), sample(90, [(1, 1)])]
    capacity = RowCapacity(40, 12, 4, 40)
    collator = PackedCollator(capacity=capacity, patch_width=12, teacher=BOTH)
    batch = collator([samples[:2], samples[2:]])
    layout = batch["layout"]
    assert batch["patches"].shape == (2, 12, 12)
    assert {side: frames.shape for side, frames in batch["teacher_frames"].items()} == {
        4: (2, 4, 4, 4, 3),
        6: (2, 4, 6, 6, 3),
    }
    np.testing.assert_array_equal(batch["teacher_media"], [[0, 0, 1, -1], [0, -1, -1, -1]])
    assert all(field.shape[:2] == (2, 40) for field in layout)
    for r, k, name in ((0, 1, 10), (0, 2, 50), (1, 1, 90)):
        mine = layout.segment[r] == k
        index = layout.patch_index[r][mine & (layout.kind[r] == Kind.PATCH)]
        np.testing.assert_array_equal(batch["patches"][r][index, 0], name + np.arange(len(index)))
        frames = np.unique(layout.frame[r][mine & (layout.frame[r] >= 0)])
        for seen in batch["teacher_frames"].values():
            assert np.all(seen[r][frames] == name)
    assert not batch["patches"][1, 1:].any()
    assert not any(seen[1, 1:].any() for seen in batch["teacher_frames"].values())


def test_no_teacher_frames_by_default():
    collator = PackedCollator(capacity=RowCapacity(10, 2, 1, 10), patch_width=12)
    assert set(collator([[sample(1, [(1, 1)])]])) == {"patches", "layout"}
