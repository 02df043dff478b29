"""A run that is stopped and killed ends bitwise where an uninterrupted one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from elva_jax.training.metrics import TIMING, read_metrics

CONFIG = Path(__file__).with_name("tiny_run.py")
STEPS = {"teacher": 40, "video": 60}
EVERY = {"log": 2, "checkpoint": 7}  # so that a checkpoint falls into the middle of a window of metrics


def start(workdir, data_dir, environment):
    overrides = [f"--config.stages.{name}.steps={steps}" for name, steps in STEPS.items()]
    overrides += [f"--config.{name}.every={value}" for name, value in EVERY.items()]
    command = [sys.executable, "-m", "elva_jax.cli", "train", "--config", f"{CONFIG}:teacher,video", "--workdir", str(workdir)]
    return subprocess.Popen(
        [*command, f"--config.data_dir={data_dir}", *overrides],
        env={**os.environ, **environment, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def wait_for(process, path):
    """Waits until a file or folder is there."""
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def everything(workdir, stage):
    """All that the last checkpoint holds: arrays as bytes, data positions as they are."""
    folder = workdir / stage / "checkpoints" / str(STEPS[stage])
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
    }
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as reader:
        arrays = {name: ocp.args.StandardRestore() for name in ("params", "optimizer")}
        out = reader.restore(folder, args=ocp.args.Composite(**arrays, data=ocp.args.JsonRestore()))
    leaves = jax.tree_util.tree_leaves_with_path({name: out[name] for name in ("params", "optimizer")})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, out["data"]


def reports(workdir, stage):
    return [{name: value for name, value in line.items() if name not in TIMING} for line in read_metrics(workdir / stage)]


@pytest.mark.slow
def test_stopped_and_killed_equals_uninterrupted(tmp_path, data_dir, compile_once):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, data_dir, compile_once))

    process = start(cut, data_dir, compile_once)
    wait_for(process, cut / "teacher" / "metrics.jsonl")
    while len(read_metrics(cut / "teacher")) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130, output
    assert f"saved in {cut / 'teacher'}" in output

    process = start(cut, data_dir, compile_once)
    wait_for(process, cut / "video" / "checkpoints" / "14")
    process.kill()
    assert process.communicate()[0].count("teacher: goes on from step") == 1
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "video" / "finished.json").exists()

    assert "video: goes on from step" in finish(start(cut, data_dir, compile_once))
    for stage in STEPS:
        assert reports(cut, stage) == reports(whole, stage)
        assert len(reports(whole, stage)) == STEPS[stage] // EVERY["log"]
        (ours, our_data), (theirs, their_data) = everything(cut, stage), everything(whole, stage)
        assert json.dumps(our_data) == json.dumps(their_data)
        assert our_data["processes"][0]["batches"]["position"] >= STEPS[stage] * 4
        assert ours.keys() == theirs.keys()
        for name, leaf in ours.items():
            assert leaf.tobytes() == theirs[name].tobytes(), name
