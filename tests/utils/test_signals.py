"""SIGINT and SIGTERM end commands soon, in real processes that inherit them ignored or blocked."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = ("train", "--config", "configs/tiny.py", "--workdir", "{folder}")
# Nobody listens at the coordinator's port, so that the process waits for it.
WAITS = (*TRAIN, "--coordinator", "127.0.0.1:9", "--num-processes", "2", "--process-id", "1")
NATIVE = """
import hashlib
from elva_jax.utils import signals
signals.end_on_signals()
with signals.raised_as_exceptions():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no bytecode until it ends
"""

CALLBACK = """
import gc, sys, time
from elva_jax.utils import signals
from elva_jax.cli import _unraisable
signals.end_on_signals()
sys.unraisablehook = _unraisable
def work(phase, info):
    print("ready", flush=True)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
gc.callbacks.append(work)  # whose exceptions Python prints and drops
with signals.raised_as_exceptions():
    try:
        gc.collect()
        time.sleep(60)
    except KeyboardInterrupt as error:
        print("closed")
        sys.exit(signals.announce(error))
"""


def ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def start(*words, inherited=None):
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=inherited,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def wait_for_handlers(process):
    """Until SIGTERM has a handler, which the interpreter itself does not install."""
    caught = 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
        time.sleep(0.01)


@pytest.mark.parametrize("inherited", [None, ignored, blocked])
@pytest.mark.parametrize(
    ("number", "statuses"), [(signal.SIGINT, {130}), (signal.SIGTERM, {143, 75})]
)
def test_a_command_ends_with_one_line_at_a_random_moment(tmp_path, number, statuses, inherited):
    words = [word.format(folder=tmp_path) for word in WAITS]
    moments = random.Random(f"{number}{inherited}")
    moment = moments.choice((0.0, moments.uniform(0.0, 4.0)))
    process = start("-m", "elva_jax.cli", *words, inherited=inherited)
    wait_for_handlers(process)
    time.sleep(moment)
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode in statuses, (moment, errors)
    assert len(errors.splitlines()) == 1, (moment, errors)


def test_native_code_does_not_delay_the_end():
    with start("-c", NATIVE, inherited=ignored) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)  # until it is within the native call
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "elva: interrupted\n")


def test_an_exception_lost_in_a_callback_is_raised_again():
    with start("-c", CALLBACK) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "elva: interrupted\n")
    assert "closed\n" in shown
