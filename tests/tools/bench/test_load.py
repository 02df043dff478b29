"""`elva bench load`: what it reports, and that loading holds the weights once."""

import dataclasses

import pytest

from elva_jax.tools.bench.load_measure import PRESETS, measure, read_seconds, write_random


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model of 50 MB in bfloat16, so that tensors are small beside it."""
    model = dataclasses.replace(
        PRESETS["tiny"], num_layers=12, hidden_size=384, intermediate_size=1536, vocab_size=1024
    )
    return write_random(model, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("source", ["run, float32", "folder, bfloat16"])
def test_loading_holds_the_weights_once(sources, source):
    """A float32 copy beside them would be three times their size; a second one twice."""
    measure(sources[source], "bfloat16", None)  # what the first load imports stays
    found = measure(sources[source], "bfloat16", None)
    assert found["weight_bytes"] > 40e6
    assert found["peak_bytes"] < 1.6 * found["weight_bytes"]
    assert read_seconds(sources[source]) > 0


def test_the_command_reports_a_checkpoint(bench, sources):
    path = sources["run, float32"]
    status, out, _, report = bench("load", "--checkpoint", str(path), "--repeats", "1")
    (row,) = report["rows"]
    assert (status, row["source"], report["dtype"]) == (0, "run", "bfloat16")
    (only,) = row["runs"]
    assert only["weight_bytes"] == row["weight_bytes"] < row["file_bytes"]
    assert row["peak_ratio"] == row["peak_bytes"] / row["weight_bytes"]
    assert row["time_ratio"] == row["seconds"] / row["read_seconds"][0]
    assert "reading" in out
