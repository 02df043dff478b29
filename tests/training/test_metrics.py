"""Tests of reports: windows, the metrics file after an interruption, progress lines."""

import importlib.util
import io
import json
import struct
import time

import jax.numpy as jnp
import pytest
from rich.console import Console

from elva_jax.errors import ConfigError
from elva_jax.training.best_weights import PREFIX
from elva_jax.training.metric_writers import flatten, open_writers, read_metrics, unflatten
from elva_jax.training.metrics import MergeMetrics, MetricsWindow
from elva_jax.training.progress import StageProgress


def test_window_averages_finite_values_and_sums_tokens():
    window = MetricsWindow()
    for loss, bad in ((1.0, 0), (float("nan"), 1), (4.0, 1)):
        window.add(
            {"loss": jnp.float32(loss), "tokens": jnp.float32(10), "bad_steps": jnp.int32(bad)}
        )
    assert window.report() == {"loss": 2.5, "tokens": 30.0, "bad_steps": 1.0}
    window.add({"loss": jnp.float32(7)})
    assert window.report() == {"loss": 7.0}


def test_saved_window_continues_exactly():
    values = [0.1, 0.2, 0.7, 1.3]
    whole, cut = MetricsWindow(), MetricsWindow()
    for value in values:
        whole.add({"loss": jnp.float32(value)})
    for value in values[:2]:
        cut.add({"loss": jnp.float32(value)})
    cut = MetricsWindow(json.loads(json.dumps(cut.fetch())))
    for value in values[2:]:
        cut.add({"loss": jnp.float32(value)})
    assert cut.report() == whole.report()


def test_merge_metrics_are_reduced_by_field_and_written_by_layer():
    """Checkpoints use the same names."""
    window = MetricsWindow()
    for kept, forced in ((0.5, 3.0), (0.25, 0.0)):
        layer = MergeMetrics(kept=kept, forced=forced, overflow=0.0, padding=kept / 2)
        window.add({"merge": (layer, layer.replace(forced=1.0)), "merge/kept_mean": kept})
    steps = [flatten(step) for step in window.fetch()]
    assert MetricsWindow([unflatten(step) for step in steps]).report() == (
        report := window.report()
    )
    assert flatten(report) == {
        "merge/kept_mean": 0.375,
        **{f"merge/kept_{k}": 0.375 for k in (0, 1)},
        **{f"merge/overflow_{k}": 0.0 for k in (0, 1)},
        **{f"merge/padding_{k}": 0.1875 for k in (0, 1)},
        "merge/forced_0": 3.0,
        "merge/forced_1": 2.0,
    }


def test_lines_of_a_run_that_was_cut_off_are_removed(tmp_path, config):
    config.log.tensorboard = False
    with open_writers(config, tmp_path, 0) as file:
        for step in (2, 4, 6):
            file.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with open_writers(config, tmp_path, 4) as file:
        file.write(6, {"loss": float("nan")})
    assert read_metrics(tmp_path) == [
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 4.0},
        {"step": 6, "loss": None},
    ]


def test_tensorboard_has_the_same_numbers(tmp_path, config, runs):
    with open_writers(config, tmp_path, 0) as file:
        file.write(2, {"loss": 0.5})
    assert runs.tensorboard_scalars(tmp_path) == [(2, "loss", 0.5)]


VALUES = {
    "loss": 1.5,
    "generation": 1.25,
    "accuracy": 0.5,
    "token_fill": 0.934,
    "tokens_per_second": 12345.6,
}


def shown(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    with StageProgress(console, "video", 40) as progress:
        progress.update(1, {})
        progress.report(10, VALUES)
        progress.update(11, {"loss": 1.25})
        time.sleep(0.6)  # a terminal is redrawn four times per second
        progress.report(40, VALUES)
    return out.getvalue()


def test_log_file_has_a_line_per_report():
    first, last = shown(terminal=False).splitlines()
    for line, step in ((first, 10), (last, 40)):
        for word in (
            f"video {step}/40",
            "loss 1.5000",
            "generation 1.2500",
            "accuracy 50.0%",
            "filled 93%",
            "12,346 tokens/s",
            "ETA 0:0",
        ):
            assert word in line


def test_terminal_has_a_live_line_with_the_speed():
    text = shown(terminal=True)
    assert (
        "video 11/40  loss 1.2500  generation 1.2500  accuracy 50.0%  filled 93%  12,346 tokens/s"
        in text
    )
    assert "video 40/40  loss 1.5000" in text


def offline_records(path):
    """The records of a W&B file that is a single block.

    The file has 7 bytes, then for each record a checksum, its length, its type, and a message.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at = path.read_bytes(), 7
    assert len(data) < 2**15
    while at < len(data):
        length, kind = struct.unpack_from("<HB", data, at + 4)
        assert kind == 1  # a complete record
        yield Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length


def test_weights_and_biases_continues_the_same_run(tmp_path, config, monkeypatch):
    """Uses the real package without its server; names of evaluators are levels, as a whole."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config.log.wandb = "elva"
    for step in (2, 4):
        with open_writers(config, tmp_path, step - 2) as writers:
            writers.write(step, {"loss": 1 / step, "bad": float("nan")})
            names = ("loss", "loss/caption", "retrieval/frame", "retrieval/frame/siglip")
            numbers = {f"{PREFIX}{name}": place / step for place, name in enumerate(names)}
            writers.write(step, {**numbers, f"{PREFIX}choice": float("nan")})
    ids, logged, ended, axes = set(), [], 0, set()
    for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for record in offline_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert (record.run.project, record.run.run_group) == ("elva", "toy")
                settings = {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
                assert settings["name"] == "toy"
            ended += record.HasField("exit")
            if record.HasField("metric"):
                axes.add((record.metric.glob_name, record.metric.step_metric))
            if record.HasField("history"):
                values = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                logged.append(
                    {name: value for name, value in values.items() if not name.startswith("_")}
                )
    assert ids == {(tmp_path / "wandb_id").read_text()}
    assert [values for values in logged if "loss" in values] == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 0.25},
    ]
    assert [values for values in logged if "loss" not in values] == [
        {"step": 2, "eval/loss": 0, "eval/loss/caption": 0.5}
        | {"eval/retrieval/frame": 1, "eval/retrieval/frame/siglip": 1.5},
        {"step": 4, "eval/loss": 0, "eval/loss/caption": 0.25}
        | {"eval/retrieval/frame": 0.5, "eval/retrieval/frame/siglip": 0.75},
    ]
    written = [
        {name: value for name, value in line.items() if value is not None}
        for line in read_metrics(tmp_path)
    ]
    assert logged == written  # as in metrics.jsonl
    assert axes == {("*", "step")}
    assert ended == 2


def test_missing_package_is_named(tmp_path, config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config.log.wandb = "elva"
    with (
        pytest.raises(ConfigError, match=r"log.wandb: .*pip install wandb"),
        open_writers(config, tmp_path, 0),
    ):
        pass
