"""Atomic writes, locks and checksums."""

import hashlib
import os
import subprocess
import sys

import pytest

from elva_jax.utils.failures import explain
from elva_jax.utils.files import lock, naming, open_atomic, sha256, write_atomic


@pytest.mark.parametrize("content", ["ä\n", b"\xff\x00"])
def test_a_file_is_replaced(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    write_atomic(path, content)
    expected = content if isinstance(content, bytes) else content.encode()
    assert path.read_bytes() == expected
    assert sha256(path) == hashlib.sha256(expected).hexdigest()
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with open_atomic(path) as file:
            file.write("half")
            file.flush()
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_excludes_other_processes_until_it_is_released(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys; from elva_jax.utils.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), wait=False): pass"
    )

    def other():
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
        return done.stderr.strip().splitlines()[-1:]

    with lock(path):
        assert "BlockingIOError" in other()[0]
    assert other() == []


def test_a_full_disk_is_named(tmp_path):
    path = tmp_path / "x.json"
    full = open("/dev/full", "w")  # noqa: SIM115
    full.write("x")
    with pytest.raises(OSError, match="No space left") as error, naming(path):
        full.close()
    assert explain(error.value).startswith(f"{path}: No space left on device; free some space")
    with pytest.raises(FileNotFoundError) as error, naming(path):
        (tmp_path / "other").read_text()
    assert error.value.filename == str(tmp_path / "other")  # named already
