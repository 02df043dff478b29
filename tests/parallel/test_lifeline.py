"""Real processes that are killed, fail or end, and what the others do then."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, socket, sys
from elva_jax.parallel import lifeline
from elva_jax.utils import signals

lifeline.OWN_SECONDS = 0.2
index, *pairs = sys.argv[1:]
named = [pair.split(":") for pair in pairs]
connections = {int(other): socket.socket(fileno=int(number)) for other, number in named}
signals.name_command("elva test")
signals.end_on_signals()
line = lifeline.Lifeline(int(index), connections, 100)
print("ready", flush=True)
if sys.stdin.readline() == "fail\\n":
    print("the disk is gone", file=sys.stderr, flush=True)
    line.end("failed")
    os._exit(1)
"""


def pair():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        return first, server.accept()[0]


@pytest.fixture
def three():
    """Processes 0, 1 and 2, each of which waits for a line: "fail", or "end"."""
    ends = {0: [], 1: [], 2: []}
    for other in (1, 2):
        first, second = pair()
        ends[0].append((other, first))
        ends[other].append((0, second))
    started = []
    for index, own in ends.items():
        words = [f"{other}:{end.fileno()}" for other, end in own]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(index), *words],
                pass_fds=[end.fileno() for _, end in own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for own in ends.values():
        for _, end in own:
            end.close()
    for process in started:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    yield started
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    """Its status and what it said."""
    status = process.wait(timeout=60)  # its input stays open
    return status, process.stderr.read()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_is_named_by_all_others_at_once(three, victim):
    three[victim].kill()
    for process in (p for p in three if p is not three[victim]):
        status, errors = ended(process)
        assert status == 1
        assert errors.startswith(f"elva test: process {victim} has ended without a word: it was")
        assert errors.count("\n") == 1


def test_those_that_end_as_they_should_end_no_other(three):
    for index in (2, 0, 1):
        assert ended_by(three[index], "end") == (0, "")
        time.sleep(0.2)  # for the others to end, which they must not


def ended_by(process, line):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return ended(process)


@pytest.mark.parametrize("index", [0, 1])
def test_after_an_error_or_a_signal_the_others_end_too(three, index):
    """Process 0 stays until they have: JAX aborts those that it leaves."""
    if index:
        os.kill(three[index].pid, signal.SIGTERM)
        assert ended(three[index]) == (143, "elva test: terminated\n")
    else:
        assert ended_by(three[index], "fail") == (1, "the disk is gone\n")
        assert all(process.poll() is not None for process in three)
    for process in (p for p in three if p is not three[index]):
        status, errors = ended(process)
        assert status == 1
        word = "with an error" if not index or process is three[0] else "without a word"
        assert errors.startswith(f"elva test: process {index} has ended {word}")
