"""A study whose processes are killed while a real training runs."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from elva_jax.config.load import load
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.tools.study import Study, Variant, queue
from elva_jax.tools.study.jobs import RESULT, jobs_of
from elva_jax.training.train import run
from elva_jax.utils.owner import NAME


def wait_until(condition):
    while not condition():
        time.sleep(0.01)


def being_written(workdir):
    """The folders of steps that are being written."""
    return {
        (path, path.stat().st_ino)
        for path in workdir.glob("*/checkpoints/*orbax-checkpoint-tmp*")
        if path.exists()
    }


def kill_in_a_save(training, workdir):
    """Kills a process group while a step is half written; what lies there already is older."""
    before = being_written(workdir)
    while True:
        wait_until(lambda: being_written(workdir) - before)
        os.killpg(training, signal.SIGSTOP)  # until it is seen that the save has not ended
        if being_written(workdir) - before:
            return os.killpg(training, signal.SIGKILL)
        os.killpg(training, signal.SIGCONT)


@pytest.mark.slow
def test_a_study_killed_twice_trains_what_an_uninterrupted_run_does(tmp_path, data_dir, runs):
    """As a power failure does: the queue and the training at once, first at a random moment."""
    overrides = {
        "stages.sft.steps": 24,
        # Smaller programs.
        "stages.sft.merging": False,
        "stages.sft.optimizer.name": "adamw",
        "model.num_layers": 1,
        "model.merge_layers": (0,),
        "checkpoint.every": 6,
        "log.tensorboard": False,
        "data_dir": str(data_dir),
    }
    study = Study(
        config=f"{runs.CONFIG}:sft",
        variants={
            "tiny": Variant(measured=False, overrides=overrides),
            "measured": Variant(of="tiny"),
        },
    )
    job = next(job for job in jobs_of(study, tmp_path / "out", 1) if job.command)

    def begin():
        """The queue, and the process group of its training once a step is newer than before."""
        before = runs.newest(job.run, "sft")
        host = multiprocessing.get_context("fork").Process(
            target=queue.work, args=([job], queue.Stop(None), lambda _: None)
        )
        host.start()
        wait_until(lambda: runs.newest(job.run, "sft") > before or not host.is_alive())
        return host, json.loads((job.run / NAME).read_text())["pid"]

    host, training = begin()
    time.sleep(random.uniform(0, 0.3))
    os.kill(host.pid, signal.SIGKILL)
    os.killpg(training, signal.SIGKILL)
    host.join()
    assert 0 < runs.newest(job.run, "sft") < 24
    host, training = begin()
    os.kill(host.pid, signal.SIGSTOP)  # it would note that its training has failed
    kill_in_a_save(training, job.run)
    os.kill(host.pid, signal.SIGKILL)
    host.join()
    assert being_written(job.run)
    assert not job.done
    assert queue.work([job], queue.Stop(None), lambda _: None) == {str(job.folder): "done"}
    parts = json.loads((job.folder / RESULT).read_text())["cost"]
    assert [part.get("killed", False) for part in parts] == [True, True, False]
    assert run(load(job.command[1], job.command[2:]), tmp_path / "whole", ELVA) == 0
    assert runs.differences(job.run, tmp_path / "whole", ["sft"]) == []
    assert len(runs.reports(job.run, "sft")) == 24
