"""One owner per folder: real processes on one machine, and files as other hosts leave them."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from elva_jax.errors import StartError
from elva_jax.utils import owner
from elva_jax.utils.owner import NAME, own

HOLD = "import sys, time; from pathlib import Path; from elva_jax.utils.owner import own\n"
HOLD += "with own(Path(sys.argv[1])): print('owned', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


def elsewhere(folder, **more):
    """The file of an owner on another host."""
    value = {"token": "a", "host": "far", "machine": "b", "pid": 1, "started": "5", "beats": 0}
    (folder / NAME).write_text(json.dumps(value | more))


def test_the_owner_is_named_and_its_death_frees_the_folder(tmp_path, holder):
    named = rf"^{tmp_path}: is in use by process {holder.pid} on [^\n]*$"
    with pytest.raises(StartError, match=named), own(tmp_path):
        pass
    holder.send_signal(signal.SIGSTOP)  # stopped is not dead
    with pytest.raises(StartError), own(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with own(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_id_is_not_the_owner(tmp_path):
    elsewhere(tmp_path, machine=owner._machine(), pid=os.getpid())
    with own(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", '{"token": 5', '{"pid": 3}', '{"token": "a"}', "[" * 9999, os.mkfifo],
)
def test_a_silent_owner_elsewhere_is_dead_after_a_while(tmp_path, monkeypatch, content):
    monkeypatch.setattr(owner, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    said = []
    if content is None:
        elsewhere(tmp_path)
    elif callable(content):
        content(tmp_path / NAME)
    else:
        (tmp_path / NAME).write_text(content)
    with own(tmp_path, said.append):
        time.sleep(0.3)
        assert json.loads((tmp_path / NAME).read_text())["beats"] > 0
    assert len(said) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_living_owner_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    elsewhere(tmp_path, job="Slurm job 7")
    beat = threading.Timer(0.3, elsewhere, (tmp_path,), {"beats": 1})
    beat.start()
    with pytest.raises(StartError, match="process 1 on far, Slurm job 7"), own(tmp_path):
        pass
    beat.join()
    assert json.loads((tmp_path / NAME).read_text())["token"] == "a"


def _take(folder, start, won, refused):
    start.wait()
    try:
        with own(folder):
            with won.get_lock():
                won.value += 1
            while won.value + refused.value < 8:
                time.sleep(0.01)
    except StartError:
        with refused.get_lock():
            refused.value += 1


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path):
    elsewhere(tmp_path, machine=owner._machine(), pid=os.getpid())  # its start does not match
    context = multiprocessing.get_context("fork")
    start, won, refused = context.Event(), context.Value("i", 0), context.Value("i", 0)
    given = (tmp_path, start, won, refused)
    processes = [context.Process(target=_take, args=given) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert (won.value, refused.value) == (1, 7)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_died_while_it_removed_a_dead_owner(tmp_path):
    """The file by which it kept others from removing is a dead owner's, too."""
    dead = {"machine": owner._machine(), "pid": os.getpid()}
    elsewhere(tmp_path, **dead)
    elsewhere(tmp_path, **dead, token="b")
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.a")
    elsewhere(tmp_path, **dead)
    with own(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", ["../x", "", "a/b", "a" * 300, 3, None, ["a"]])
def test_a_strange_token_is_damage(tmp_path, token):
    elsewhere(tmp_path, token=token, machine=owner._machine(), pid=os.getpid())
    assert owner._read(tmp_path / NAME) == {"token": ""}


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with own(tmp_path), pytest.raises(StartError), own(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
