"""A run that is killed and stopped ends bitwise where an uninterrupted one ends."""

import os
import signal
import time

import pytest

from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.train import run

STEPS = {"video": 30, "sft": 30}
ARG = f"{','.join(STEPS)}+siglip+vivit"  # two teachers guide the first stage, one of them of clips
OVERRIDES = {
    **{f"stages.{stage}.steps": steps for stage, steps in STEPS.items()},
    "log.every": 2,
    "log.tensorboard": False,
    "checkpoint.every": 13,  # so that a checkpoint is in the middle of a metrics window
    "model.num_layers": 1,
    "model.merge_layers": (0,),
}


def wait_for(process, runs, condition):
    while not condition():
        assert process.poll() is None, runs.output(process)
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_stopped_equals_uninterrupted(
    tmp_path, tiny_run, data_dir, runs, with_random_towers
):
    """SIGKILL; then SIGTERM to the whole group, decoding processes included, as schedulers do."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = tiny_run.get_config(ARG)
    config.update_from_flattened_dict(OVERRIDES | {"data_dir": str(data_dir)})
    with_random_towers(config)
    assert run(config, whole, ELVA) == 0
    sources = {
        f"teachers.{name}.init_from": teacher.init_from for name, teacher in config.teachers.items()
    }

    def start(**more):
        return runs.start(cut, data_dir, OVERRIDES | sources | more, arg=ARG)

    (process,) = start()
    wait_for(process, runs, lambda: runs.newest(cut, "video") >= 13)
    process.kill()
    process.wait()
    assert not (cut / "video" / "finished.json").exists()

    (process,) = start(**{"stages.sft.data.workers": 1})
    wait_for(process, runs, lambda: len(read_metrics(cut / "sft")) > 2)
    os.killpg(process.pid, signal.SIGTERM)
    told = runs.finish([process], 75)
    assert "video: continues from step" in told
    assert f"saved at {runs.newest(cut, 'sft')} in {cut / 'sft'}" in told
    assert "Traceback" not in told

    told = runs.finish(start())
    assert "sft: continues from step" in told
    assert runs.differences(cut, whole, STEPS) == []
    lines = runs.reports(whole, "video")
    assert len(lines) == STEPS["video"] // 2
    guided = {"tube/siglip", "tube/vivit", "contrastive/siglip", "contrastive/vivit"}
    assert len({lines[-1][term] for term in guided}) == 4
    assert "in 3 start(s)" in told
