"""Tests of the endless order of records: epochs, shards, shares and sampling strategies."""

import itertools
import pickle
from collections import Counter
from fractions import Fraction

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elva_jax.config import schema
from elva_jax.data import mixture
from elva_jax.data.batches import conversation_batches
from elva_jax.errors import DataError


def test_every_epoch_has_every_record_once_in_another_order():
    stream = mixture.stream([17], [1], seed=3)
    epochs = [[stream[e * 17 + k] for k in range(17)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, k) for k in range(17)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_epoch_without_overlap(count):
    shards = [mixture.stream([18], [1], 3, index, count) for index in range(count)]
    for epoch in range(2):
        each = 18 // count
        seen = [shard[epoch * each + k] for shard in shards for k in range(each)]
        assert sorted(seen) == [(0, k) for k in range(18)]


def test_weights_hold_in_every_interval():
    stream = mixture.stream([50, 9, 30], [300, 100, 100], seed=0)
    for start in (0, 137):
        drawn = Counter(stream[start + k][0] for k in range(100))
        assert all(abs(drawn[source] - share) <= 1 for source, share in enumerate((60, 20, 20)))
    second = [stream[k][1] for k in range(200) if stream[k][0] == 1]
    # A small source begins its next epoch while a large one continues.
    assert sorted(second[:9]) == sorted(second[9:18]) == list(range(9))


def test_seeds_depend_only_on_their_arguments():
    # sha256 of "1/video", 31 bits.
    assert mixture.stage_seed(1, "video") == mixture.stage_seed(1, "video") == 565_965_830
    others = {
        mixture.stage_seed(1, "video"),
        mixture.stage_seed(2, "video"),
        mixture.stage_seed(1, "sft"),
        mixture.stage_seed(1, "video", 0),
    }
    assert len(others) == 4
    assert all(0 <= seed < 2**31 for seed in others)


def test_fewer_records_than_processes_are_refused():
    with pytest.raises(DataError, match="2 records, fewer than the 3 processes"):
        mixture.stream([5, 2], [1, 1], 0, 0, 3)


def test_examples_per_epoch_counts_all_sources(config):
    assert len(mixture.Mixture(config, "video")) == 24
    config.stages.video.data.mixture.b = schema.source("moving_shapes/small", "other", 0.1)
    assert len(mixture.Mixture(config, "video")) == 32


@pytest.fixture
def several(config):
    """A mixture of splits of the small data set by label; train has 24 records, other has 8."""

    def several(temperature=0.0, **sources):
        data = config.stages.video.data
        data.temperature = temperature
        data.mixture = {
            label: schema.source("moving_shapes/small", **source)
            for label, source in sources.items()
        }
        return mixture.Mixture(config, "video")

    return several


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.sampled_from([0.1, 0.25, 1.0, 3.0, 7.5]), min_size=2, max_size=4))
def test_weights_mix_as_grain_mixes_them(weights):
    """Positions in checkpoints refer to this order."""
    smallest = min(weights)
    ours = mixture.stream(
        [60_000] * len(weights), [int(weight * (100 / smallest)) for weight in weights], 5
    )
    parts = []
    for k in range(len(weights)):
        part = grain.MapDataset.range(60_000).seed(mixture.stage_seed(5, k)).shuffle()[::1].repeat()
        parts.append(part.map(lambda index, k=k: (k, index)))
    theirs = grain.MapDataset.mix(parts, weights)
    assert [ours[n] for n in range(300)] == [theirs[n] for n in range(300)]


def test_weights_do_not_depend_on_sizes(several):
    loaded = several(a=dict(split="train", weight=1.0), b=dict(split="other", weight=2.5))
    assert loaded.shares == [100, 250]
    assert len(loaded) == 32


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_temperature_draws_by_size(several, temperature):
    """T5's rule: the share of a source is its weight times the T-th root of its size."""
    loaded = several(
        temperature,
        a=dict(split="train", epochs=2.0),
        b=dict(split="other"),
        c=dict(split="other", weight=3.0),
    )
    expected = [48 ** (1 / temperature), 8 ** (1 / temperature), 3 * 8 ** (1 / temperature)]
    order = mixture.stream([60_000] * 3, loaded.shares, 0)
    drawn = Counter(order[n][0] for n in range(5000))
    assert [drawn[k] / 5000 for k in range(3)] == pytest.approx(
        [share / sum(expected) for share in expected], abs=1e-3
    )
    assert len(loaded) == 48 + 8 + 8


def test_every_record_is_read_once_per_configured_epoch(several, config):
    loaded = several(
        1.0,
        a=dict(split="train"),
        b=dict(split="other", epochs=3.0),
        c=dict(split="train", sampling="first:7"),
    )
    assert len(loaded) == len(mixture.Mixture(config, "video")) == 24 + 3 * 8 + 7
    order = mixture.stream(loaded.lengths, loaded.shares, 11)
    for start in (0, len(loaded)):
        drawn = Counter(order[start + n] for n in range(len(loaded)))
        assert drawn == {(0, k): 1 for k in range(24)} | {(1, k): 3 for k in range(8)} | {
            (2, k): 1 for k in range(7)
        }


def test_strategies_select_their_records(several):
    keys = [f"clip{k:03d}" for k in range(24)]
    expected = {
        "all": keys,
        "first:5": keys[:5],
        "end:5": keys[-5:],
        "first:10%": keys[:3],
        "end:12.5%": keys[-3:],
        "end:24": keys,
    }
    for sampling, wanted in expected.items():
        loaded = several(a=dict(split="train", sampling=sampling))
        assert loaded.lengths == [len(wanted)]
        assert [loaded.example(0, n).key for n in range(len(wanted))] == wanted, sampling
    assert several(a=dict(split="train", sampling="end:5")).key(0, 1) == "a[20]"


def test_random_records_depend_only_on_the_seed(several, config):
    def drawn(label="a", sampling="random:50%"):
        loaded = several(**{label: dict(split="train", sampling=sampling)})
        assert loaded.lengths == [12]
        stream = mixture.stream(loaded.lengths, loaded.shares, 3)
        epochs = [
            {loaded.example(0, stream[e * 12 + n][1]).key for n in range(12)} for e in range(2)
        ]
        assert epochs[0] == epochs[1]
        assert len(epochs[0]) == 12
        return epochs[0]

    first = drawn()
    assert first == drawn(sampling="random:12")
    config.stages.other = config.stages.video
    assert set(mixture.Mixture(config, "other").used[0]) == {
        int(key.removeprefix("clip")) for key in first
    }
    assert first != drawn(label="b")
    config.seed = 1
    assert first != drawn()


@settings(deadline=None, max_examples=20)
@given(
    total=st.integers(1, 300),
    kind=st.sampled_from(["first", "end", "random"]),
    percent=st.fractions(Fraction(1, 10), 100, max_denominator=10),
    seed=st.integers(0, 2**31 - 1),
)
def test_fraction_of_the_records_is_rounded_up_without_duplicates(total, kind, percent, seed):
    used = mixture.SampledIndices(f"{kind}:{float(percent)}%", total, seed, "a")
    assert len(used) == -(-total * Fraction(str(float(percent))) // 100)
    chosen = [used[k] for k in range(len(used))]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(total))
    if kind != "random":
        assert chosen == (
            list(range(total))[: len(used)] if kind == "first" else list(range(total))[-len(used) :]
        )


def test_random_records_are_spread_evenly():
    counts = Counter(k // 100 for k in mixture.SampledIndices("random:20%", 1000, 7, "a"))
    # The mean is 20; within 4 standard deviations.
    assert all(8 <= counts[decade] <= 36 for decade in range(10))


def test_ten_million_records_take_no_memory():
    used = mixture.SampledIndices("random:30%", 10_000_000, 7, "a")
    order = mixture.stream([len(used), 10_000_000], [300, 700], 0)
    assert len(pickle.dumps(used)) < 300
    assert (
        len(
            set(
                itertools.islice((used[order[n][1]] for n in range(5000) if order[n][0] == 0), 1000)
            )
        )
        == 1000
    )


def test_requesting_too_many_records_is_refused(several):
    with pytest.raises(
        DataError, match=r"^a: sampling = random:25, but it has 24 records; did you mean all\?$"
    ):
        several(a=dict(split="train", sampling="random:25"))


def test_position_with_another_lookahead_is_refused(several, config, tokenizer):
    """But that of a version without this key continues with the default."""
    several(a=dict(split="train"))
    state = conversation_batches(config, "video", tokenizer).get_state()
    del state["settings"]["pack_lookahead"]
    conversation_batches(config, "video", tokenizer).set_state(state)
    config.stages.video.data.pack_lookahead = 12
    with pytest.raises(DataError, match=r"^data position: pack_lookahead was None .* is 12 now"):
        conversation_batches(config, "video", tokenizer).set_state(state)


def test_position_of_another_sampling_strategy_is_refused(several, config, tokenizer):
    several(a=dict(split="train", sampling="first:12"))
    state = conversation_batches(config, "video", tokenizer).get_state()
    for change in (dict(sampling="end:12"), dict(sampling="random:50%")):
        several(a=dict(split="train", **change))
        with pytest.raises(DataError, match=r"^data position: mixture was .*first:12"):
            conversation_batches(config, "video", tokenizer).set_state(state)
    several(2.0, a=dict(split="train", sampling="first:12"))
    with pytest.raises(DataError, match=r"^data position: mixture was .*temperature"):
        conversation_batches(config, "video", tokenizer).set_state(state)
