"""Tests of changing the number of processes: each record is read once, and counters add up."""

import json
from collections import Counter
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from elva_jax.data import mixture
from elva_jax.data.iterator_state import StreamPosition, redistribute, trace
from elva_jax.data.packing import PackingBuffer, RowCapacity
from elva_jax.data.pipeline import BatchIterator, SampleReader
from elva_jax.data.safe_read import Rejected
from elva_jax.video.counts import Counts

CAPACITY = RowCapacity(16, 16, 16, 16)
RECORDS = 41


class Drawn(NamedTuple):
    """A sample that stores its position and its record."""

    position: StreamPosition
    record: int
    counts: Counts


class Drawing:
    """Streams over a source without media; every ninth record is bad for one of three reasons."""

    def __init__(self, number):
        self.streams = [
            mixture.stream([RECORDS], [1.0], 7, index, number) for index in range(number)
        ]

    def __call__(self, place):
        record = self.streams[place.stream][place.index][1]
        if record % 9 == 5:
            return Rejected(f"record{record}", f"reason {record % 3}")
        return Drawn(place, record, Counts(1 + record * 7 % 13, 1, 1, 1))


class Joined:
    """A collator that returns the samples."""

    row_bytes = 1

    def __call__(self, rows):
        return [sample for row in rows for sample in row]

    def stats(self, rows):
        counts = [sample.counts for row in rows for sample in row]
        return {"examples": len(counts), "tokens": sum(count.tokens for count in counts)}


def iterator(index, count, rows, streams=Drawing, limit=1.0):
    place = {"process_index": index, "process_count": count}
    return BatchIterator(
        reader=SampleReader(streams, **place, workers=0, buffer=2),
        packer=PackingBuffer(CAPACITY, 8),
        collator=Joined(),
        rows=rows,
        max_bad_fraction=limit,
        settings=place,
        examples_per_epoch=1,
    )


def go_on(states, count, rows, batches):
    """Continues `states` with `count` processes; returns their samples and states after batches."""
    samples, after = [], []
    for index in range(count):
        process = iterator(index, count, rows)
        if states:
            process.resume(states)
        for _ in range(batches):
            samples += next(process)
        after.append(json.loads(json.dumps(process.get_state())))
        process.close()
    return samples, after


@settings(deadline=None, max_examples=8)
@given(
    phases=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3)), min_size=2, max_size=4
    ),
    last=st.integers(1, 4),
)
def test_every_record_is_read_once_per_epoch_for_any_changes_of_processes(phases, last):
    samples, states, before = [], [], Counter()
    for count, rows, batches in [*phases, (last, 2, RECORDS // 2 // last + 4)]:
        new, states = go_on(states, count, rows, batches)
        samples += new
        waiting = sum(len(state["waiting"]) for state in states)
        # Each record that was read is in a batch, waits, or was dropped.
        dropped = Counter()
        for state in states:
            dropped.update(state["reasons"])
        assert sum(state["seen"] for state in states) == len(samples) + waiting + dropped.total()
        assert all(dropped[reason] >= n for reason, n in before.items())
        assert all(state["reasons"].keys() == state["first"].keys() for state in states)
        before = dropped
    # The first epoch of every initial stream ended long before the last change of the number.
    first = phases[0][0]
    taken = Counter(sample.position for sample in samples)
    assert max(taken.values()) == 1
    ends = [len(range(stream, RECORDS, first)) for stream in range(first)]
    waiting = [StreamPosition(*place) for state in states for place in state["waiting"]]
    epoch = Counter(
        sample.record for sample in samples if sample.position.index < ends[sample.position.stream]
    )
    left = {Drawing(first)(place).record for place in waiting if place.index < ends[place.stream]}
    good = {record for record in range(RECORDS) if record % 9 != 5}
    assert all(n == 1 for n in epoch.values())
    assert epoch.keys() == good - left


def test_positions_are_traced_through_every_change_of_processes():
    """By hand: two processes stop at 3 and 1, then three at 2, 0 and 1; one process continues."""
    assert [trace([], 2, 1, k) for k in range(2)] == [(1, 0), (1, 1)]
    dealt = [trace([[3, 1]], 3, m, k) for k in range(2) for m in range(3)]
    assert dealt == [(0, 3), (1, 1), (0, 4), (1, 2), (0, 5), (1, 3)]
    # Process 0 has read (0, 3) and (1, 2), process 2 has read (0, 4). Of the positions so far,
    # (1, 1) and (0, 5) of process 1 remain.
    assert [trace([[3, 1], [2, 0, 1]], 1, 0, k) for k in range(5)] == [
        (0, 6),
        (1, 1),
        (1, 3),
        (1, 5),
        (0, 5),
    ]


def test_states_are_unchanged_for_the_same_number_of_processes():
    _, states = go_on([], 3, 2, 4)
    assert [redistribute(states, index, 3) for index in range(3)] == states
    samples, after = go_on(states, 3, 2, 2)
    whole, end = go_on([], 3, 2, 6)
    before, _ = go_on([], 3, 2, 4)
    assert after == end
    assert Counter(samples) + Counter(before) == Counter(whole)


@settings(deadline=None, max_examples=10)
@given(
    sizes=st.lists(st.integers(1, 16), min_size=RECORDS, max_size=RECORDS),
    cut=st.integers(0, 5),
    rows=st.integers(1, 3),
)
def test_resumed_process_continues_exactly(sizes, cut, rows):
    class Sized(Drawing):
        def __call__(self, place):
            sample = super().__call__(place)
            return (
                sample
                if isinstance(sample, Rejected)
                else sample._replace(counts=Counts(sizes[sample.record], 1, 1, 1))
            )

    whole, again = (iterator(0, 1, rows, streams=Sized) for _ in range(2))
    for _ in range(cut):
        next(whole)
    again.set_state(json.loads(json.dumps(whole.get_state())))
    for _ in range(3):
        assert again.get_state() == whole.get_state()
        assert (next(again), again.stats) == (next(whole), whole.stats)
    for process in (whole, again):
        process.close()


def test_state_of_the_oldest_format_is_read():
    """Its waiting examples are indices into the process's own stream, and it has no history."""
    process = iterator(1, 2, 2)
    next(process)
    state = process.get_state()
    old = {name: value for name, value in state.items() if name != "deals"} | {
        "waiting": [index for _, index in state["waiting"]]
    }
    assert old["waiting"]
    expected = next(process)
    again = iterator(1, 2, 2)
    again.set_state(json.loads(json.dumps(old)))
    assert next(again) == expected
    for opened in (process, again):
        opened.close()
