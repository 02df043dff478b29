"""The endless order of records: epochs, shards and weights."""

from collections import Counter

import pytest

from elva_jax.data import mixture
from elva_jax.errors import DataError


def test_every_epoch_has_every_record_once_in_another_order():
    stream = mixture.stream([17], [1.0], seed=3)
    epochs = [[stream[e * 17 + k] for k in range(17)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, k) for k in range(17)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_epoch_without_overlap(count):
    shards = [mixture.stream([18], [1.0], 3, index, count) for index in range(count)]
    for epoch in range(2):
        each = 18 // count
        seen = [shard[epoch * each + k] for shard in shards for k in range(each)]
        assert sorted(seen) == [(0, k) for k in range(18)]


def test_weights_hold_in_every_stretch():
    stream = mixture.stream([50, 9, 30], [3.0, 1.0, 1.0], seed=0)
    for start in (0, 137):
        drawn = Counter(stream[start + k][0] for k in range(100))
        assert all(abs(drawn[source] - share) <= 1 for source, share in enumerate((60, 20, 20)))
    second = [stream[k][1] for k in range(200) if stream[k][0] == 1]
    assert sorted(second[:9]) == sorted(second[9:18]) == list(range(9))  # a small source starts over while a large one goes on


def test_seeds_depend_on_everything_named_and_nothing_else():
    assert mixture.stage_seed(1, "video") == mixture.stage_seed(1, "video") == 565_965_830  # sha256 of "1/video", 31 bits
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
        mixture.stream([5, 2], [1.0, 1.0], 0, 0, 3)


def test_examples_per_epoch_counts_all_sources(config):
    from elva_jax.config import base

    assert mixture.examples_per_epoch(config, "video") == 24
    config.stages.video.data.mixture.b = base.source("moving_shapes/small", "other", 0.1)
    assert mixture.examples_per_epoch(config, "video") == 32
