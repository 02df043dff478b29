"""Tests of `elva bench packing`: the fill of packed rows for the paper's mixture."""

from collections import Counter

import numpy as np
import pytest

from elva_jax.data.packing import simulate
from elva_jax.tools.bench import packing
from elva_jax.video.counts import Counts, count
from elva_jax.video.layout import Clip, Text, build_layout


def test_fine_tuning_mixture_fills_90_percent_of_the_tokens(bench):
    status, out, err, report = bench("packing", "--examples", "2000")
    assert (status, err) == (0, "")
    assert report["capacity"] == {
        "tokens": 20_480,
        "patches": 18_432,
        "frames": 128,
        "merged_tokens": 9_728,
    }
    fill = {row["mix"]: row["token_fill"] for row in report["rows"]}
    assert fill["mix"] >= 0.9
    # Two videos of at least 11,264 tokens do not fit into one row, and there are too few images to
    # fill the remaining tokens.
    assert fill["16:9 HD"] < 0.7
    # Packing with all examples known would hardly fill more, for any size.
    assert all(row["token_fill"] > row["best_fit_over_all"] - 0.01 for row in report["rows"])
    assert f"{fill['mix']:.1%}" in out


def test_mixture_whose_videos_do_not_fit_together_fails(bench, monkeypatch):
    monkeypatch.setattr(packing, "VIDEOS", {"mix": packing.VIDEOS["16:9 HD"]})
    assert bench("packing", "--examples", "300")[0] == 1


def test_lengths_equal_those_of_layouts():
    drawn = list(packing.lengths(packing.VIDEOS["16:9 HD"], 2000, 672, 28))
    videos = [counts for counts in drawn if counts.frames == 32]
    assert len(videos) / len(drawn) == pytest.approx(178 / 843, abs=0.02)
    for counts, grid in (
        (videos[0], (14, 24)),
        (next(c for c in drawn if c.patches == 17 * 23), (17, 23)),
    ):
        clip = Clip([grid] * counts.frames)
        text = counts.tokens - build_layout([clip]).length
        assert count(build_layout([clip, Text([1] * text)])) == counts
    assert Counter(counts.frames for counts in drawn).keys() == {0, 1, 32}


def test_best_fit_decreasing_by_hand():
    """6 and 4 share a row, 5 and 5 share another one, 3 has its own."""
    examples = [Counts(n, 0, 0, n) for n in (3, 5, 6, 4, 5)]
    assert packing.best_fit_decreasing(examples, Counts(10, 1, 1, 10)) == pytest.approx(23 / 30)


def test_lookahead_fills_more():
    drawn = list(packing.lengths(packing.VIDEOS["mix"], 2000, 672, 28))
    fill = [
        simulate(drawn, Counts(20_480, 18_432, 128, 20_480), ahead).token_fill
        for ahead in (0, 1, 8)
    ]
    assert fill == sorted(fill)
    assert fill[0] == pytest.approx(np.mean([counts.tokens for counts in drawn]) / 20_480)
