"""Runs the toy model in separate processes, and reads the files that they write."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX.proto import event_pb2

from elva_jax.checkpoints import handlers
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.metrics import TIMING

CONFIG = Path(__file__).with_name("tiny_run.py")


def words(workdir, data_dir, overrides, arg="teacher,video"):
    """The arguments of `elva train`, with `overrides` {key: value}."""
    values = [
        f"--config.{key}={value}" for key, value in {"data_dir": data_dir, **overrides}.items()
    ]
    return ["train", "--config", f"{CONFIG}:{arg}", "--workdir", str(workdir), *values]


def start(
    workdir,
    data_dir,
    overrides,
    environment=None,
    arg="teacher,video",
    processes=1,
    program=("-m", "elva_jax.cli"),
):
    """Starts `elva train` in processes with separate process groups, and returns them."""
    command = [sys.executable, *program, *words(workdir, data_dir, overrides, arg)]
    if processes == 1:
        return [launch(command, environment)]
    command += [
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--num-processes",
        str(processes),
        "--heartbeat-timeout",
        "10",
    ]
    return [
        launch([*command, "--process-id", str(index)], environment) for index in range(processes)
    ]


def launch(command, environment=None):
    """Starts a command in a new process group; `output` returns its output."""
    # A file, because a pipe that is not read fills up and blocks the process.
    log = tempfile.TemporaryFile()  # noqa: SIM115 it is used as long as the process runs
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {}), "JAX_PLATFORMS": "cpu"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    process.log = log
    return process


def output(process):
    """The output of a process so far."""
    return os.pread(process.log.fileno(), 2**24, 0).decode()


def free_port():
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def finish(processes, status=0):
    """Waits for all processes, checks their exit status, and returns the first output."""
    for process in processes:
        process.wait(timeout=600)
        assert process.returncode == status, f"exit status {process.returncode}: {output(process)}"
    return output(processes[0])


def newest(workdir, stage):
    """The newest saved step of a stage; 0 if there is none."""
    folder = workdir / stage / "checkpoints"
    return (
        max((int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()), default=0)
        if folder.is_dir()
        else 0
    )


def everything(workdir, stage):
    """The contents of the newest step: arrays as bytes by path, and data positions."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # on any devices it was saved from
    step = (workdir / stage / "checkpoints" / str(newest(workdir, stage))).absolute()
    with handlers.open_reader() as reader:
        trees = {
            item: dict(reader.metadata(step).item_metadata[item].tree)
            for item in ("params", "optimizer")
        }
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), trees
        )
        arrays = {item: ocp.args.StandardRestore(tree) for item, tree in target.items()}
        out = reader.restore(step, args=ocp.args.Composite(**arrays, data=ocp.args.JsonRestore()))
    leaves = jax.tree_util.tree_leaves_with_path({name: out[name] for name in arrays})
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}, out[
        "data"
    ]


def reports(workdir, stage):
    """The lines of metrics.jsonl without metrics that differ between identical runs."""
    return [
        {name: value for name, value in line.items() if name not in TIMING}
        for line in read_metrics(workdir / stage)
    ]


def differences(one, two, stages):
    """Describes the differences of two finished runs; empty if they are bitwise equal."""
    found = []
    for stage in stages:
        if newest(one, stage) != newest(two, stage):
            found.append(f"{stage}: ends at step {newest(one, stage)} and {newest(two, stage)}")
            continue
        (ours, our_data), (theirs, their_data) = everything(one, stage), everything(two, stage)
        if reports(one, stage) != reports(two, stage):
            found.append(f"{stage}: metrics")
        if json.dumps(our_data) != json.dumps(their_data):
            found.append(f"{stage}: data position")
        found += [
            f"{stage}: {name}"
            for name in ours.keys() | theirs.keys()
            if ours.get(name) != theirs.get(name)
        ]
    return found


def tensorboard_scalars(stage):
    """(step, name, value) of every scalar in a stage's only file of events."""
    (events,) = (stage / "tensorboard").iterdir()
    data, found = events.read_bytes(), []
    while data:  # length, checksum, event, checksum
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    return found
