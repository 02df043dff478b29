"""A run that is stopped and killed ends bitwise where an uninterrupted one ends."""

import os
import signal
import time

import pytest

from elva_jax.training import train
from elva_jax.training.metric_writers import read_metrics

STEPS = {"teacher": 100, "sft": 40}
OVERRIDES = {
    **{f"stages.{stage}.steps": steps for stage, steps in STEPS.items()},
    "log.every": 2,
    "log.tensorboard": False,
    "checkpoint.every": 23,  # so that a checkpoint is in the middle of a metrics window
}


def wait_for(process, runs, condition):
    while not condition():
        assert process.poll() is None, runs.output(process)
        time.sleep(0.02)


@pytest.mark.slow
def test_stopped_and_killed_equals_uninterrupted(tmp_path, tiny_run, data_dir, runs):
    """SIGTERM to the whole group, decoding processes included, as schedulers do; then SIGKILL."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = tiny_run.get_config(",".join(STEPS))
    config.update_from_flattened_dict(OVERRIDES | {"data_dir": str(data_dir)})
    assert train.run(config, whole) == 0

    def start(**more):
        return runs.start(cut, data_dir, OVERRIDES | more, arg=",".join(STEPS))

    (process,) = start(**{"stages.teacher.data.workers": 1})
    wait_for(process, runs, lambda: len(read_metrics(cut / "teacher")) > 2)
    os.killpg(process.pid, signal.SIGTERM)
    told = runs.finish([process], 75)
    assert f"saved at {runs.newest(cut, 'teacher')} in {cut / 'teacher'}" in told
    assert "Traceback" not in told

    (process,) = start()
    wait_for(process, runs, lambda: runs.newest(cut, "sft") >= 23)
    process.kill()
    process.wait()
    assert "teacher: continues from step" in runs.output(process)
    assert not (cut / "sft" / "finished.json").exists()

    told = runs.finish(start())
    assert "sft: continues from step" in told
    assert runs.differences(cut, whole, STEPS) == []
    assert len(runs.reports(whole, "sft")) == STEPS["sft"] // 2
    assert "in 3 start(s)" in told
