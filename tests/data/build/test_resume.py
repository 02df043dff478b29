"""Kills and interrupts real builds: finished shards are kept, the others are built again."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elva_jax.utils.files import lock

SHARDS = 6


@pytest.fixture(scope="module")
def slow(tmp_path_factory, made) -> Path:
    """A source of clips that are slow to transcode; some of them are broken."""
    folder = tmp_path_factory.mktemp("slow")
    clip = made.video(1, frames=40, size=(240, 320), rate=30)
    for k in range(2 * SHARDS):
        (folder / f"{k}.mp4").write_bytes(clip if k % 5 else b"broken")
    notes = [made.talk("What?", f"Clip {k}.", video=f"{k}.mp4") for k in range(2 * SHARDS)]
    (folder / "slow.json").write_text(json.dumps(notes))
    return folder / "slow.json"


def arguments(slow, data_dir, workers):
    return [
        *("data", "build", slow, "--name", "slow", "--data-dir", data_dir),
        *("--longest-edge", 64, "--shard-size", 2, "--workers", workers),
    ]


def begin(slow, data_dir, workers):
    """Starts a build in a process that handles SIGINT as on a terminal; waits for a file."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from elva_jax.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, *map(str, arguments(slow, data_dir, workers))]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    state = data_dir / "slow/1.0.0/build/train"
    while not list(state.glob("0*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process, state


def children(process) -> list[int]:
    return [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def whole(slow, tmp_path_factory, contents):
    """The files of a build without interruption."""
    from elva_jax import cli

    folder = tmp_path_factory.mktemp("whole")
    assert cli.main([str(word) for word in arguments(slow, folder, 1)]) == 0
    return contents(folder)


@pytest.mark.slow
def test_killed_build_ends_like_an_uninterrupted_one(slow, tmp_path, elva, whole, contents):
    process, state = begin(slow, tmp_path, 2)
    workers = children(process)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in workers):  # workers end together with their parent
        assert time.monotonic() < deadline
        time.sleep(0.01)
    finished = {path: path.stat().st_mtime_ns for path in state.glob("0*.json")}
    assert 1 <= len(finished) < SHARDS
    assert not (tmp_path / "slow/1.0.0/features.json").exists()

    status, out, err = elva(*arguments(slow, tmp_path, 1)[1:])
    assert status == 0, err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(tmp_path) == whole
    records = [
        json.loads(line)
        for line in (tmp_path / "slow/1.0.0/rejected-train.jsonl").read_text().splitlines()
    ]
    assert [record["record"] for record in records] == [0, 5, 10]
    assert "slow.json" not in out


@pytest.mark.slow
def test_interrupted_build_prints_one_line_and_continues(slow, tmp_path, elva, whole, contents):
    process, state = begin(slow, tmp_path, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    finished = len(list(state.glob("0*.json")))
    assert (out, err) == (
        "",
        f"elva data: interrupted; {finished} of {SHARDS} files are built, "
        "start again to continue\n",
    )
    assert elva(*arguments(slow, tmp_path, 1)[1:])[0] == 0
    assert contents(tmp_path) == whole


def test_full_disk_gives_one_line_and_leaves_no_partial_file(slow, tmp_path, elva):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        status, _, err = elva(*arguments(slow, tmp_path, 1)[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert status == 1
    assert err.endswith(
        "cannot be written (write() failed: File too large); start again to continue\n"
    )
    assert err.count("\n") == 1
    assert [path.name for path in (tmp_path / "slow/1.0.0").iterdir()] == ["build"]


def test_shard_that_another_process_builds_is_refused(slow, tmp_path, elva):
    from elva_jax.tools.datasets.build import start

    plan, _ = start.begin(
        start.BuildOptions(
            source=str(slow), name="slow", data_dir=tmp_path, longest_edge=64, shard_size=2
        )
    )
    busy = plan.file(0).with_name(f".{plan.file(0).name}.{os.uname().nodename}.tmp")
    with lock(busy):
        status, _, err = elva(*arguments(slow, tmp_path, 1)[1:])
    assert status == 1
    assert (
        "another process builds this shard; wait for it, or give each process its own --shard"
        in err
    )
