"""A run with a changing number of processes reads every record once per epoch.

In between it is killed, preempted and interrupted.
"""

import itertools
import json
import re
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WATCHED = Path(__file__).with_name("watched.py")
SCRIPT = Path(__file__).parents[2] / "launch" / "local_multihost.sh"
GREYS = list(range(8, 248, 10))  # one for each record
STEPS, ROWS = 1000, 4  # more steps than it reaches
OVERRIDES = {
    "stages.sft.steps": STEPS,
    "stages.sft.batch_size": ROWS,
    "stages.sft.data.pack": False,
    "stages.sft.data.num_frames": 1,
    # Smaller programs, the same records.
    "stages.sft.merging": False,
    "stages.sft.optimizer.name": "adamw",
    "model.num_layers": 1,
    "model.merge_layers": (0,),
    "log.tensorboard": False,
    "checkpoint.every": 7,  # so that a run continues in the middle of an epoch
}


@pytest.fixture
def records(tmp_path):
    """A LLaVA file with a picture of each grey; returns {key: value} of the configuration."""
    for grey in GREYS:
        Image.fromarray(np.full((48, 48, 3), grey, np.uint8)).save(tmp_path / f"{grey}.png")
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Grey."}]
    (tmp_path / "greys.json").write_text(
        json.dumps([{"image": f"{grey}.png", "conversations": talk} for grey in GREYS])
    )
    source = {
        "name": str(tmp_path / "greys.json"),
        "root": str(tmp_path),
        "split": "",
        "tasks": "()",
    }
    return {f"stages.sft.data.mixture.shapes.{key}": value for key, value in source.items()}


class Starts:
    """The starts of one run, and the records that each of its steps was trained on."""

    def __init__(self, runs, folder, data_dir, overrides):
        self.workdir, self.by_step = folder / "run", {}
        self._runs, self._notes = runs, folder / "notes"
        self._notes.mkdir()
        self._python = folder / "python"
        self._python.write_text(
            f'#!/bin/sh\n[ "$2" = -m ] && shift 3 && exec {sys.executable} {WATCHED} "$@"\n'
            f'exec {sys.executable} "$@"\n'
        )
        self._python.chmod(0o755)
        self._proxy = socket.create_server(("127.0.0.1", 0))  # never answers
        self._environment = {
            "ELVA_TEST_NOTES": str(self._notes),
            "http_proxy": f"http://127.0.0.1:{self._proxy.getsockname()[1]}",
        }
        self._given = (self.workdir, data_dir, overrides)

    def begin(self, processes):
        return self._runs.start(*self._given, self._environment, "sft", processes, (str(WATCHED),))

    def begin_by_script(self, count):
        """The same by launch/local_multihost.sh."""
        (_, *words) = self._runs.words(*self._given, "sft")
        return self._runs.launch(
            ["bash", str(SCRIPT), str(count), *words],
            {**self._environment, "PYTHON": str(self._python)},
        )

    def wait_for(self, processes, step):
        while self._runs.newest(self.workdir, "sft") < step:
            assert all(process.poll() is None for process in processes), [
                self._runs.output(process) for process in processes
            ]
            time.sleep(0.01)

    def check_proxy(self):
        """Nobody has asked it: processes connect to each other themselves."""
        self._proxy.setblocking(False)
        with self._proxy, pytest.raises(BlockingIOError):
            self._proxy.accept()

    def ended(self, first):
        """Notes the records of a start that continued from `first`; returns its last save."""
        paths = list(self._notes.iterdir())
        lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
        for number, rows in enumerate(zip(*lines, strict=False), first + 1):
            self.by_step[number] = list(itertools.chain(*rows))
        for path in paths:
            path.unlink()
        return self._runs.newest(self.workdir, "sft")


@pytest.mark.slow
def test_every_record_once_an_epoch(tmp_path, data_dir, runs, records):
    run = Starts(runs, tmp_path, data_dir, OVERRIDES | records)

    pair = run.begin(2)
    run.wait_for(pair, 8)
    pair[1].kill()
    status = pair[0].wait(timeout=90)  # notices by itself
    last = runs.output(pair[0]).splitlines()[-1]
    assert status == 1, last
    assert last.startswith("elva train: process 1 has ended without a word: it was killed, ran out")
    first = run.ended(0)

    (alone,) = run.begin(1)
    run.wait_for([alone], first + 8)
    alone.send_signal(signal.SIGTERM)
    told = runs.finish([alone], 75)
    assert (
        f"sft: continues from step {first}; saved by 2 process(es), so data are distributed again"
        in told
    )
    second = run.ended(first)

    script = run.begin_by_script(2)
    run.wait_for([script], second + 8)
    script.send_signal(signal.SIGINT)
    told = runs.finish([script], 130)
    assert f"[0] sft: continues from step {second}; saved by 1 process(es)" in told
    assert re.search(r"^\[0\] sft: stopped at step (\d+) of \d+, saved at \1 in", told, re.M)
    third = run.ended(second)
    run.check_proxy()

    assert 0 < first < second < third < STEPS
    epoch = len(GREYS) // ROWS
    for step in range(0, third - epoch + 1, epoch):
        assert (
            sorted(itertools.chain(*(run.by_step[step + k + 1] for k in range(epoch)))) == GREYS
        ), step
