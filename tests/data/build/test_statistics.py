"""Tests of mergeable sums and histograms."""

import json

import numpy as np
import pytest

from elva_jax.tools.datasets.build.media import Size
from elva_jax.tools.datasets.build.statistics import REASONS, Histogram, Measured, Statistics


@pytest.mark.parametrize(
    "numbers",
    [np.arange(1, 5000), np.random.default_rng(0).lognormal(3, 2, 4000), np.zeros(3), [7.25]],
)
def test_quantiles_are_accurate_to_three_digits(numbers):
    histogram = Histogram()
    for value in numbers:
        histogram.add(value.item() if hasattr(value, "item") else value)
    assert (histogram.count, histogram.low, histogram.high) == (
        len(numbers),
        np.min(numbers),
        np.max(numbers),
    )
    assert histogram.total == pytest.approx(np.sum(numbers))
    for share in (0.05, 0.5, 0.95, 1.0):
        exact = np.quantile(numbers, share, method="inverted_cdf")
        assert histogram.quantile(share) == pytest.approx(exact, rel=0.006)


def test_whole_numbers_below_a_thousand_are_exact():
    histogram = Histogram()
    for value in range(1000):
        histogram.add(value)
    assert sorted(histogram.bins) == list(range(1000))


def example(k: int) -> Measured:
    kinds = ["video", "image"][: k % 3]
    sizes = [
        Size(height=10 + k % 7, width=20, frames=3, seconds=k / 7),
        Size(height=5, width=6, frames=1, seconds=0.0),
    ]
    return Measured(
        kinds=kinds,
        sizes=sizes[: len(kinds)],
        turns=1 + k % 4,
        bytes=100 * k,
        text_tokens=10 + k if k % 2 else None,
        visual_tokens=5 * k,
    )


def test_merged_parts_equal_the_whole_in_memory_and_from_files():
    whole, merged = Statistics(), Statistics()
    for part in range(5):
        found = Statistics()
        for k in range(20 * part, 20 * part + 20):
            for statistics in (whole, found):
                statistics.add(example(k)) if k % 6 else statistics.reject(
                    f"key{k}", f"broken in {k % 4} of 4.5 s"
                )
        merged.merge(Statistics.from_json(json.loads(json.dumps(found.to_json()))))
    ours, theirs = merged.to_json(), whole.to_json()
    assert ours["seconds"].pop("total") == pytest.approx(theirs["seconds"].pop("total"))
    assert ours["seconds"].pop("mean") == pytest.approx(theirs["seconds"].pop("mean"))
    assert ours == theirs
    assert ours["rejected"] == {"broken in 0 of 4.5 s": {"records": 17, "first": "key0"}}
    assert ours["records"] == 83


def test_reasons_and_resolutions_are_listed_up_to_a_limit():
    statistics = Statistics()
    for k in range(REASONS + 50):
        statistics.reject(f"key{k}", "x" * k)
    assert len(statistics.rejected) == REASONS + 1
    assert statistics.rejected["other reasons"] == 50
    assert statistics.first["other reasons"] == f"key{REASONS}"
    for k in range(1, 6):
        for _ in range(k):
            size = Size(height=k, width=k, frames=1, seconds=0.0)
            statistics.add(
                Measured(
                    kinds=["image"],
                    sizes=[size],
                    turns=1,
                    bytes=1,
                    text_tokens=None,
                    visual_tokens=1,
                )
            )
    assert statistics.to_json(2)["resolutions"] == {"5x5": 5, "4x4": 4, "others": 6}
