"""Tests of the trace of the requested steps, read with JAX's reader."""

import json

from jax.profiler import ProfileData
from rich.console import Console

from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.train import run


def steps_of(folder):
    """Numbers of the traced training steps, and names of all traced events."""
    (path,) = folder.rglob("*.xplane.pb")
    events = [
        event
        for plane in ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
    ]
    return sorted(dict(event.stats)["step_num"] for event in events if event.name == "train"), {
        event.name for event in events
    }


def test_requested_steps_are_traced(tiny_run, data_dir, tmp_path, capsys):
    config = tiny_run.get_config("teacher")
    config.data_dir = str(data_dir)
    config.log.tensorboard = False
    config.stages.teacher.steps = 5
    config.stages.teacher.optimizer.name = "adamw"
    assert run(config, tmp_path, ELVA, profile=(2, 3), console=Console(soft_wrap=True)) == 0
    assert f"the trace of steps up to 3 is in {tmp_path / 'profile'}" in capsys.readouterr().out
    steps, names = steps_of(tmp_path / "profile")
    assert steps == [2, 3]
    assert any("dot" in name for name in names)  # the compiled program
    assert [line["step"] for line in read_metrics(tmp_path / "teacher")] == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "summary.json").read_text())["stages"]["teacher"]["step"] == 5
