"""Rows, batches and windows of the scheduler."""

import dataclasses

import pytest

from elva_jax import testing
from elva_jax.inference.batches.buckets import Buckets
from elva_jax.inference.batches.dialogue import dialogue_parts
from elva_jax.inference.batches.queries import (
    Group,
    Item,
    Query,
    Writing,
    group_by_media,
    make_query,
)
from elva_jax.inference.batches.reading import read_ahead
from elva_jax.inference.batches.rows import Row, rows_of
from elva_jax.inference.batches.schedule import Scheduler
from elva_jax.inference.sampling import Sampling


@pytest.fixture(scope="module")
def model():
    return testing.tiny_model()


def query(prefix):
    return Query(
        tag=0, parts=(), prefix=(), question=(1,), prefix_tokens=prefix, writing=None, scorings={},
        kind=None,
    )  # fmt: skip


def row(prefix):
    return Row(queries=(query(prefix),), visuals=())


def test_rows_of_similar_length_share_a_batch():
    buckets, batches = Buckets(4), []
    for prefix in (100, 400, 97, 390, 99, 20, 110, 385):
        batches += buckets.add(row(prefix))
    assert [sorted(r.prefix_tokens for r in batch.rows) for batch in batches] == [
        [97, 99, 100, 110]
    ]
    batches = list(buckets.flush())
    # Short rows fill up the batch of longer ones.
    assert [[r.prefix_tokens for r in batch.rows] for batch in batches] == [[400, 390, 385, 20]]
    assert batches[0].shapes["prefix"]("prefix", 400) >= 400


def test_shapes_that_have_been_used_are_used_again():
    buckets, used = Buckets(4), []
    for prefixes in ((100,) * 4, (90,), (30,), (60, 60), (100,), (28,), (200, 200), (128,)):
        for prefix in prefixes:
            used += buckets.add(row(prefix))
        used += buckets.flush()
    found = [(len(b.rows), b.size, b.shapes["prefix"]("prefix", 1)) for b in used]
    # A row of 30 is not padded to 112 tokens, and a batch of 4 serves one row of 90.
    assert found == [
        (4, 4, 112), (1, 4, 112), (1, 1, 32), (2, 4, 112), (1, 4, 112), (1, 1, 32), (2, 2, 224),
        (1, 2, 224),
    ]  # fmt: skip
    # Programs do not know seeds.
    shapes = []
    for seed in range(3):
        drawn = dataclasses.replace(query(50), kind=seed, program="draw")
        assert not list(buckets.add(Row(queries=(drawn,), visuals=())))
        shapes += [batch.shapes for batch in buckets.flush()]
    assert len(shapes) == 3
    assert all(each is shapes[0] for each in shapes)


def test_few_rows_wait():
    buckets, asked = Buckets(2), 0
    for k in range(40):
        asked += sum(len(batch.rows) for batch in buckets.add(row(100 + 100 * k)))
        assert k + 1 - asked <= 8


def test_rows_have_one_kind_of_writing_and_a_bounded_number_of_queries(model):
    def make(tag, most, **sampling):
        parts = dialogue_parts(model, [(f"What? {tag}", "")], ())
        writing = Writing(max_new_tokens=most, sampling=Sampling(**sampling))
        return make_query(model.model_config, tag, parts, writing)

    queries = [make(0, 8), make(1, 7, stop=(".",)), make(2, 8, seed=3), make(3, 500)]
    queries += [make(4, 8, temperature=1.0), make(5, 8, temperature=1.0, seed=1), make(6, 5)]
    found = [[q.tag for q in row.queries] for row in rows_of(queries, (), 3)]
    assert found == [[0, 1, 2], [6], [3], [4], [5]]


def test_only_one_more_window_is_read_ahead():
    taken = []

    def windows():
        for k in range(5):
            taken.append(k)
            yield from (Group(media=(k,), items=(item(k),)), None)

    def item(k):
        return Item(tag=k, name=str(k), media=(k,), make=lambda visuals: query(1))

    ahead = read_ahead(windows(), lambda medium, name: medium, ahead=100, workers=1)
    for group, _ in ahead:
        assert taken[-1] == min((group.media[0] if group else taken[-2]) + 1, 4)


def test_each_query_has_its_own_length_stop_strings_and_draws(model):
    """All at once, in two windows; as each by itself."""
    frames = [testing.tiny_video(seed=k) for k in range(2)]
    wanted = [
        (k, f"What moves? {k}", most, sampling)
        for k, (most, sampling) in enumerate(
            [
                (8, Sampling()),
                (5, Sampling(stop=("e",))),
                (8, Sampling(temperature=2.0, seed=7)),
                (6, Sampling(temperature=2.0, seed=7, stop=(" ",))),
            ]
        )
    ]

    def item(k, text, most, sampling):
        def make(visuals):
            parts = model.prompt_parts(text, visuals)
            writing = Writing(max_new_tokens=most, sampling=sampling)
            return make_query(model.model_config, k, parts, writing)

        return Item(tag=k, name=str(k), media=(k % 2,), make=make)

    read = []

    def reads(medium, name):
        read.append(medium)
        return model.read_media(frames[medium])

    items = [item(*each) for each in wanted]
    windows = [group_by_media(items[:3], 16), group_by_media(items[3:], 16)]
    scheduler = Scheduler(model, reads, batch_size=4)
    found = {}
    for replies in scheduler.run(windows):
        found |= {reply.tag: reply for reply in replies}
    assert sorted(read) == [0, 1]
    for k, text, most, sampling in wanted:
        answer = model.prefill([(model.read_media(frames[k % 2]),)])
        ((alone,),) = answer.generate([[text]], most, sampling=sampling)
        assert found[k].answer == alone, k
    assert len({reply.answer.text for reply in found.values()}) > 2
