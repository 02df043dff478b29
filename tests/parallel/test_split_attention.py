"""Attention of a sequence that several devices share."""

import pytest


def test_it_equals_one_device_with_a_block_of_scores_and_one_exchange_of_keys(on_eight_devices):
    (report,) = on_eight_devices("split_attention.py", optimized=True)
    one, eight = report["loss"]
    assert eight == pytest.approx(one, rel=1e-5)
    assert max(report["errors"]) < 1e-5
    assert report["temporaries"] < 4 * report["scores_of_a_block"]  # of six blocks
    kinds = [kind for kind, _, size in report["collectives"] if size > 4]
    assert (
        kinds == ["all-gather"] * 4 + ["reduce-scatter"] * 2
    )  # keys, values, segments, turns; gradients of the first two
    assert {times for _, times, _ in report["collectives"]} == {
        1
    }  # none inside the loop over blocks
