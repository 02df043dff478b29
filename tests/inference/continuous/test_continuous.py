"""Tests that requests which come and go get the answers that each would get alone."""

import asyncio
import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest

from elva_jax.errors import ClosedError, ConfigError, LayoutError, QueueFullError
from elva_jax.inference.continuous import (
    ContinuousEngine,
    Delta,
    Done,
    EngineSettings,
    from_parts,
    request,
)
from elva_jax.inference.continuous import engine as engine_module
from elva_jax.inference.continuous.grid import make_grid
from elva_jax.inference.continuous.joining import Joining
from elva_jax.inference.continuous.pace import Pace
from elva_jax.inference.continuous.prefixes import PrefixEntry, PrefixStore
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.readers import Readers
from elva_jax.inference.continuous.slots import MOST_STEPS, Static
from elva_jax.inference.kv_cache import PrefixCache
from elva_jax.inference.prefilled import STOP_INTERVAL
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.models.elva import with_merging
from elva_jax.ops.merging import NO_MERGING, MergeLayer, Merging

QUESTIONS = ["What colour is the circle?", "How many?", "Where is the blue one?"]
DRAWN = [
    Sampling(temperature=1.5, top_p=0.9, repetition_penalty=1.2, seed=seed) for seed in range(2)
]
TOKENS = 6
OTHER = Merging((MergeLayer(0, "ratio", ratio=0.9),))
# One length of each kind, so that few programs are compiled.
SETTINGS = EngineSettings(
    slots=4, queue=8, joins=2, context=112, smallest=112, question=32, max_new_tokens=32
)


@pytest.fixture(scope="module")
def engine(model):
    with ContinuousEngine(model, SETTINGS) as engine:
        engine.warm_up((True, OTHER))
        yield engine


@pytest.fixture(scope="module")
def alone(batch):
    """Answers without an engine, by video, question and sampling."""
    found = {}
    for sampling in (GREEDY, *DRAWN):
        rows = batch[True].generate([QUESTIONS] * 4, TOKENS, sampling=sampling)
        for (v, row), q in itertools.product(enumerate(rows), range(len(QUESTIONS))):
            found[v, q, sampling] = row[q]
    assert len(set(found.values())) > 20, "answers that are all alike would prove little"
    return found


def ask(model, shown, video=0, question=0, sampling=GREEDY, tokens=TOKENS, **other):
    return request(
        model, shown[video], QUESTIONS[question], sampling=sampling, max_new_tokens=tokens, **other
    )


def text_of(ticket):
    return "".join(event.text for event in ticket if isinstance(event, Delta))


@pytest.mark.parametrize("seed", range(3))
def test_answers_under_load_equal_those_alone(engine, model, shown, alone, seed):
    """Requests of every kind arrive at random, and no program is compiled for them."""
    rng, before = np.random.default_rng(seed), engine.stats()
    cases, tickets = [], []
    for _ in range(16):
        v, q, s = (int(n) for n in rng.integers((4, 3, 3)))
        cases.append((v, q, (GREEDY, *DRAWN)[s]))
        tickets.append(engine.submit(ask(model, shown, *cases[-1], stream=bool(q))))
        while engine.stats().queued > rng.integers(SETTINGS.queue):
            next(iter(tickets[int(rng.integers(len(tickets)))]))
    for ticket, case in zip(tickets, cases, strict=True):
        done, expected = ticket.result(60), alone[case]
        assert done.answer == expected, case
        assert done.finish_reason == ("stop" if expected.finished else "length")
        assert text_of(ticket) == (expected.text if ticket.request.stream else "")
        assert done.completion_tokens == len(expected.tokens)
        assert done.seconds.total >= done.seconds.first_token > 0
    after = engine.stats()
    assert after.compilations == 0
    assert after.prefix_misses + after.prefix_hits >= len(cases) + (
        before.prefix_misses + before.prefix_hits
    )
    assert (after.running, after.queued) == (0, 0)


def test_one_prefill_serves_all_who_ask_about_a_video(model, shown, alone):
    with ContinuousEngine(model, SETTINGS) as engine:
        tickets = [engine.submit(ask(model, shown, 2, q)) for q in (0, 1, 2, 0)]
        done = [ticket.result(60) for ticket in tickets]
        stats = engine.stats()
        cache = engine._prefixes.acquire(f"{tickets[0].request.prefix_key} 0").layers
    assert [each.answer for each in done] == [alone[2, q, GREEDY] for q in (0, 1, 2, 0)]
    assert (stats.prefix_misses, stats.prefix_hits) == (1, 3)
    assert [each.shared_prefix for each in done] == [False, True, True, True]
    assert stats.prefix_bytes == sum(leaf.nbytes for layer in cache for leaf in layer) > 0
    first = done[0]
    assert first.merged_tokens[0] > first.merged_tokens[-1] > 0
    assert first.prompt_tokens == first.merged_tokens[0] + len(tickets[0].request.prompt.question)


def test_rope_is_scaled_for_the_length_that_an_answer_has(engine, model, batch, shown):
    """An answer that crosses the model's longest sequence continues with a prefix of its own."""
    (expected,), *_ = batch[True].generate([[QUESTIONS[2]]] * 4, 16)
    ticket = engine.submit(ask(model, shown, 0, 2, tokens=16))
    prompt = ticket.request.prompt
    longest, tokens = model.model_config.max_position, prompt.prefix_tokens + len(prompt.question)
    assert tokens < longest < tokens + len(expected.tokens)
    assert ticket.result(60).answer == expected
    assert text_of(ticket) == expected.text


def test_a_stop_string_ends_an_answer_and_is_not_shown(engine, model, shown, alone):
    video, question, answer = next(
        (v, q, a) for (v, q, s), a in alone.items() if s == GREEDY and len(a.text) > 3
    )
    stop = answer.text[2:4]
    sampling = Sampling(stop=(stop,))
    ticket = engine.submit(ask(model, shown, video, question, sampling))
    done = ticket.result(60)
    assert done.finish_reason == "stop"
    assert done.answer.finished
    assert text_of(ticket) == done.answer.text == answer.text[: answer.text.find(stop)].rstrip()


def test_a_cancelled_request_frees_its_slot(engine, model, shown, alone):
    """More long requests than slots, all cancelled: the next one is answered at once."""
    endless = Sampling(temperature=5.0)
    tickets = [
        engine.submit(ask(model, shown, 1, 0, endless, tokens=32)) for _ in range(SETTINGS.slots)
    ]
    waiting = engine.submit(ask(model, shown, 1, 0, endless, tokens=32))
    waiting.cancel()
    for ticket in tickets:
        next(iter(ticket))
        ticket.cancel()
    assert engine.submit(ask(model, shown)).result(60).answer == alone[0, 0, GREEDY]
    reasons = {ticket.result(60).finish_reason for ticket in [*tickets, waiting]}
    assert reasons <= {"cancelled", "stop", "length"}
    assert waiting.result().answer.tokens == ()
    assert waiting.result().finish_reason == "cancelled"


def test_requests_that_cannot_be_taken_are_refused_by_themselves(engine, model, shown, alone):
    long = shown[0] * 2
    for refused, words in (
        (ask(model, [long], 0), r"the prompt up to its last video: \d+ tokens"),
        (ask(model, shown, tokens=33), "max_new_tokens: 33 tokens, but this engine takes at most"),
    ):
        with pytest.raises(LayoutError, match=words):
            engine.submit(refused)
    # Patches that are not those of the clip: the error ends this request and no other.
    other = ask(model, shown, 3)
    wrong = dataclasses.replace(ask(model, shown, 1), media=shown[3], prefix_key="wrong")
    tickets = [engine.submit(each) for each in (wrong, other)]
    assert tickets[0].result(60).finish_reason == "error"
    assert "patches" in tickets[0].result().error
    assert tickets[1].result(60).answer == alone[3, 0, GREEDY]
    assert engine.healthy


def test_a_full_queue_refuses_and_draining_finishes_the_rest(model, shown, alone):
    engine = ContinuousEngine(model, dataclasses.replace(SETTINGS, queue=2))
    started, held = threading.Event(), threading.Event()

    def hold(event):
        started.set()
        held.wait(60)

    first = engine.submit(ask(model, shown))
    first.subscribe(hold)  # a reader on the engine's own thread, which it therefore holds up
    assert started.wait(60)
    tickets = [engine.submit(ask(model, shown, question=q)) for q in (1, 2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        engine.submit(ask(model, shown))
    assert not engine.drain(0.01)
    held.set()
    assert engine.drain(60)
    for q, ticket in enumerate([first, *tickets]):
        assert ticket.done
        assert ticket.result().answer == alone[0, q, GREEDY]
    with pytest.raises(ClosedError):
        engine.submit(ask(model, shown))
    engine.close()
    assert not engine.healthy


def test_closing_cancels_what_has_not_ended(model, shown):
    engine = ContinuousEngine(model, SETTINGS)
    tickets = [engine.submit(ask(model, shown, v, tokens=32)) for v in (0, 1)]
    engine.close()
    assert {ticket.result(60).finish_reason for ticket in tickets} <= {"cancelled", "stop"}


def test_a_device_that_fails_ends_the_running_requests_and_then_the_engine(
    model, shown, alone, monkeypatch
):
    """After one error the engine answers again; after several in a row it is not healthy."""
    with ContinuousEngine(model, SETTINGS) as engine:
        batch = engine._batch
        with monkeypatch.context() as patch:
            patch.setattr(batch, "advance", lambda steps: 1 // 0)
            done = engine.submit(ask(model, shown)).result(60)
            assert (done.finish_reason, done.error) == (
                "error",
                "integer division or modulo by zero",
            )
        assert engine.submit(ask(model, shown)).result(60).answer == alone[0, 0, GREEDY]
        assert engine.healthy
        monkeypatch.setattr(batch, "advance", lambda steps: 1 // 0)
        for _ in range(3):
            assert engine.submit(ask(model, shown)).result(60).finish_reason == "error"
        engine._thread.join(60)
        assert not engine.healthy
        with pytest.raises(ClosedError):
            engine.submit(ask(model, shown))


def test_events_reach_asyncio(engine, model, shown, alone):
    async def read(ticket):
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        ticket.subscribe(lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        out = [await events.get()]
        while not isinstance(out[-1], Done):
            out.append(await events.get())
        return out

    *deltas, done = asyncio.run(read(engine.submit(ask(model, shown, 1, 2))))
    assert done.answer == alone[1, 2, GREEDY]
    assert "".join(delta.text for delta in deltas) == done.answer.text


def test_a_reader_that_is_gone_cancels_its_request_alone(engine, model, shown, alone):
    gone, other = engine.submit(ask(model, shown, 0, 1)), engine.submit(ask(model, shown, 0, 2))
    gone.subscribe(lambda event: 1 // 0)
    assert other.result(60).answer == alone[0, 2, GREEDY]
    assert gone.result(60).finish_reason in ("cancelled", "stop", "length")


def test_other_merging_is_warmed_up(engine, model, shown):
    merged = []
    for merging in (True, OTHER):
        done = engine.submit(ask(model, shown, 3, merging=merging)).result(60)
        assert done.finish_reason in ("stop", "length")
        merged.append(done.merged_tokens)
    assert merged[0] != merged[1]
    assert engine.stats().compilations == 0


def test_keys_of_prefixes_differ_with_all_that_the_prefix_depends_on(model, shown):
    same = [ask(model, shown, 0, q).prefix_key for q in (0, 1)]
    others = [
        ask(model, shown, 1),
        ask(model, shown, 0, merging=False),
        ask(model, shown, 0, merging=OTHER),
        from_parts(
            [*model.prompt_parts("?", shown[0]), *model.prompt_parts("?", shown[0])], shown[0] * 2
        ),
    ]
    assert same[0] == same[1]
    assert len({same[0], *(each.prefix_key for each in others)}) == 5


def entry(key, lengths, fill=0.0):
    layers = tuple(
        PrefixCache(
            *(np.full((1, 1, n, 2), fill, np.float32) for _ in range(2)), np.ones((1, n), bool)
        )
        for n in lengths
    )
    return PrefixEntry(key=key, layers=layers, lengths=lengths, tokens=(), length=lengths[0])


def test_the_store_keeps_prefixes_in_use_and_others_up_to_its_limit():
    one = entry("", (8,)).nbytes
    store = PrefixStore(2 * one)
    entries = {key: entry(key, (8,)) for key in "abcd"}
    for each in entries.values():
        store.add(each)
    assert (len(store), store.nbytes) == (4, 4 * one)
    for key in "abc":
        store.release(entries[key])
    assert (len(store), store.nbytes) == (3, 3 * one)
    assert store.acquire("a") is None, "the one unused for longest goes first"
    assert store.acquire("b") is entries["b"]
    store.release(entries["d"])
    assert store.acquire("c") is entries["c"], "two unused ones fit"
    assert store.acquire("d") is entries["d"]


def test_the_pool_holds_the_prefix_of_every_slot(config, model):
    """Random slots, prefixes and lengths: each slot reads its own prefix, at a place of its own."""
    small = dataclasses.replace(
        with_merging(model.model_config, NO_MERGING), num_kv_heads=1, head_dim=2, num_layers=1
    )
    grid = make_grid(small, EngineSettings(slots=8, context=16, smallest=8))
    programs = Programs(Static(small, 0, ()), model.engine.weights, None)
    rng, pool, count = np.random.default_rng(0), Readers(programs, grid), 2
    entries = [entry(str(n), grid.classes[n % len(grid.classes)], n + 1.0) for n in range(6)]
    slots = {}
    for turn in range(24):
        if turn == 12:
            count = 8
        slots = {s: e for s, e in slots.items() if rng.random() < 0.7}
        for s in rng.permutation(count)[: 1 + turn % 3]:
            slots.setdefault(int(s), entries[int(rng.integers(6))])
        pool.arrange(slots, count, afresh=turn % 7 == 0)
        rows, places, readers = pool.where(count)
        assert pool.layout == readers.shape
        assert pool.layout in grid.layouts(count)
        assert all(readers[rows[s], places[s]] == s for s in slots)
        assert len({(rows[s], places[s]) for s in slots}) == len(slots)
        assert all(places[s] < pool.layout[1] for s in slots)
        for s, each in slots.items():
            for held, own in zip(pool.layers, each.layers, strict=True):
                valid = np.asarray(held.valid[rows[s]])
                assert valid.sum() == own.valid.shape[1]
                np.testing.assert_array_equal(np.asarray(held.k[rows[s]])[:, valid], own.k[0])


def test_prefixes_of_other_lengths_are_fed_beside_each_other(model):
    """Each row of the batch holds its own prefix, and nothing of it is left out or added."""
    small = dataclasses.replace(
        with_merging(model.model_config, NO_MERGING), num_kv_heads=1, head_dim=2, num_layers=1
    )
    grid = make_grid(small, EngineSettings(slots=4, joins=4, context=32, smallest=8))
    programs = Programs(Static(small, 0, ()), model.engine.weights, None)
    entries = [entry(str(n), (length,), n + 1.0) for n, length in enumerate((16, 8, 32))]
    (layer,) = Joining(model, programs, grid, PrefixStore(0))._beside(entries)
    assert layer.k.shape == layer.v.shape == (4, 1, 32, 2)
    assert np.asarray(layer.valid[:3]).sum(1).tolist() == [16, 8, 32]
    for row, each in enumerate(entries):
        valid = np.asarray(layer.valid[row])
        for held, own in zip(layer[:2], each.layers[0][:2], strict=True):
            np.testing.assert_array_equal(np.asarray(held[row])[:, valid], own[0])


def test_slots_stay_for_the_next_request_and_are_given_up_when_idle(
    model, shown, alone, monkeypatch
):
    """Slots that nobody uses hold no answer of before, and no memory after a while."""
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 3600.0)
    with ContinuousEngine(model, SETTINGS) as engine:
        for video, question in ((0, 0), (1, 2), (0, 1)):
            done = engine.submit(ask(model, shown, video, question)).result(60)
            assert done.answer == alone[video, question, GREEDY]
            assert engine._batch._slots is not None
            assert engine.stats().running == 0
        monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.0)
        assert engine.submit(ask(model, shown)).result(60).answer == alone[0, 0, GREEDY]
        deadline = time.monotonic() + 60
        while engine._batch._readers.layers and time.monotonic() < deadline:
            time.sleep(0.05)
        assert engine._batch._readers.layers == ()
        assert engine._batch._slots is None
        assert engine.submit(ask(model, shown)).result(60).answer == alone[0, 0, GREEDY]


def test_a_dispatch_takes_as_many_steps_as_fit_into_its_time_whatever_pauses_there_are():
    pace = Pace(0.02)
    assert pace.steps(stops=False) == MOST_STEPS
    for seconds in (0.004, 4.0, 0.004, 0.4):  # two of these were interrupted
        pace.measure(seconds, 2)
    assert pace.steps(stops=False) == 10
    assert pace.steps(stops=True) == STOP_INTERVAL
    for _ in range(8):
        pace.measure(0.02, 2)
    assert pace.steps(stops=False) == 2, "slower dispatches count once they are all that is known"
    pace = Pace(0.02)
    pace.measure(1.0, 1)
    assert pace.steps(stops=False) == 1


def test_settings_out_of_range_are_refused():
    for wrong in ({"slots": 0}, {"queue": 0}, {"prefix_bytes": -1}, {"dispatch_seconds": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            EngineSettings(**wrong)
