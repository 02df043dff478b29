"""The toy run, and losses and gradients on meshes of fake devices in processes of their own."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def tiny_run():
    """The module tests/training/tiny_run.py."""
    return SimpleNamespace(
        **runpy.run_path(str(Path(__file__).parents[1] / "training" / "tiny_run.py"))
    )


@pytest.fixture(scope="session")
def compare(tmp_path_factory):
    """compare(cases, devices, processes=1) -> [(case, result of `equality.py`), …]."""
    folder = tmp_path_factory.mktemp("one_device")  # the results of one device, computed once

    def run(cases, devices, processes=1):
        environment = fake(devices, os.environ["XLA_FLAGS"])
        command = [
            sys.executable,
            str(Path(__file__).with_name("equality.py")),
            *cases,
            "--folder",
            str(folder),
        ]
        if processes > 1:
            command += [
                "--coordinator",
                f"127.0.0.1:{free_port()}",
                "--num-processes",
                str(processes),
            ]
        started = []
        for index in range(processes):
            extra = ["--process-id", str(index)] if processes > 1 else []
            started.append(
                subprocess.Popen(
                    [*command, *extra],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        results = []
        for process in started:
            output, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
            lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            results += zip(cases, lines, strict=True)
        return results

    return run


@pytest.fixture
def on_eight_devices():
    """run(name) -> [JSON, …]: what a script of this folder prints with eight fake devices.

    `optimized` is for programs that compute longer than they compile.
    """

    def run(name, *, optimized=False):
        command = [sys.executable, str(Path(__file__).with_name(name))]
        environment = fake(8, "" if optimized else os.environ["XLA_FLAGS"])
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def fake(devices: int, flags: str) -> dict[str, str]:
    """The environment of a process with this many fake devices."""
    flags = f"--xla_force_host_platform_device_count={devices} {flags}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port():
    """A port that nobody listens on."""
    return free_port()
