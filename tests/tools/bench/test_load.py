"""`elva bench load`: what it reports, and that loading holds the weights once."""

import dataclasses
import gc

import jax
import pytest

from elva_jax.hf.open_model import opening_source
from elva_jax.inference import load_weights
from elva_jax.inference.load import load_source
from elva_jax.tools.bench.load_measure import PRESETS, read_seconds, write_random


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model of 50 MB in bfloat16, so that tensors are small beside it."""
    model = dataclasses.replace(
        PRESETS["tiny"], num_layers=12, hidden_size=384, intermediate_size=1536, vocab_size=1024
    )
    return write_random(model, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("source", ["run, float32", "folder, bfloat16"])
def test_loading_holds_the_weights_once(sources, source, monkeypatch):
    """Bytes on the device when each tensor arrives: those kept, and the ones in flight.

    A float32 copy beside the weights would be three times their size, a second copy twice. Resident
    memory at this size is mostly what allocators keep; `elva bench load` measures it at 1.5B.
    """
    monkeypatch.setattr(load_weights, "AT_ONCE", 2**22)  # small beside the weights, as at 1.5B
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    held = []

    def see(path, array):
        held.append(sum(each.nbytes for each in jax.live_arrays()) - before)

    with opening_source(sources[source]) as opened:
        model = load_source(opened, dtype="bfloat16", see=see)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.engine.weights))
    assert weights > 40e6
    # A run's arrays below 32 MiB are saved, and so read, as one chunk of all layers in float32.
    stack = 4 * 12 * 384 * 1536 if source.startswith("run") else 0
    assert weights / 2 < max(held) < weights + stack + 2 * load_weights.AT_ONCE
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
