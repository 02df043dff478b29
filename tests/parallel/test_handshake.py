"""Processes that meet before JAX starts: all, too few, or different ones."""

import json
import socket
import threading
import time

import pytest

from elva_jax.errors import ConfigError, StartError
from elva_jax.parallel.handshake import rendezvous

FACTS = {"code": "abc", "config": {"seed": 0, "stages": {"sft": {"steps": 4}}}}


def close(connections):
    for connection in connections.values():
        connection.close()


def together(calls, port, timeout=20.0):
    """Runs every call (index, facts, count) in a thread, and returns what each raised."""
    raised = [None] * len(calls)

    def one(place, index, facts, count):
        try:
            close(rendezvous(f"127.0.0.1:{port}", count, index, facts, timeout))
        except Exception as error:
            raised[place] = error

    threads = [
        threading.Thread(target=one, args=(place, *call)) for place, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def test_equal_processes_meet_in_any_order(port):
    assert together([(2, FACTS, 3), (1, FACTS, 3), (0, FACTS, 3)], port) == [None] * 3
    assert together([(0, FACTS, 2), (1, FACTS, 2)], port) == [None] * 2  # the port is free again


def test_connections_with_process_0_stay_open(port):
    """And its port is free for another listener at once."""
    found = [None] * 3

    def one(index):
        found[index] = rendezvous(f"127.0.0.1:{port}", 3, index, FACTS, 20)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [sorted(connections) for connections in found] == [[1, 2], [0], [0]]
    with socket.create_server(("127.0.0.1", port)):
        for index in (1, 2):
            found[index][0].sendall(b"%d" % index)
            assert found[0][index].recv(9) == b"%d" % index
    for connections in found:
        close(connections)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (
            [(0, FACTS, 2), (1, {**FACTS, "code": "abd"}, 2)],
            "process 1 differs: code: 'abd', in process 0 'abc'",
        ),
        (
            [
                (0, FACTS, 2),
                (1, {"code": "abc", "config": {"seed": 0, "stages": {"sft": {"steps": 5}}}}, 2),
            ],
            "process 1 differs: config.stages.sft.steps: 5, in process 0 4",
        ),
        (
            [(0, FACTS, 2), (1, FACTS, 3)],
            "process 1 differs: number of processes: 3, in process 0 2",
        ),
        ([(0, FACTS, 3), (1, FACTS, 3), (1, FACTS, 3)], "two processes claim to be process 1"),
    ],
)
def test_every_process_reports_a_difference(calls, message, port):
    for error in together(calls, port):
        assert isinstance(error, ConfigError)
        assert str(error) == message


def test_missing_processes_are_named_by_all_others(port):
    host, other = together([(0, FACTS, 4), (2, FACTS, 4)], port, timeout=1.5)
    for error in (host, other):
        assert isinstance(error, StartError)
        assert str(error).startswith("2 of 4 processes did not come within 2 s: 1, 3;")


def test_no_process_0(port):
    (error,) = together([(1, FACTS, 2)], port, timeout=1.0)
    assert isinstance(error, StartError)
    assert f"process 0 did not answer at 127.0.0.1:{port} within 1 s (Connection refused)" in str(
        error
    )


def test_strangers_and_dead_processes_do_not_count(port):
    """Connections without a valid message, and a process that dies while waiting and restarts."""
    errors = []

    def host():
        try:
            close(rendezvous(f"127.0.0.1:{port}", 3, 0, FACTS, 30))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=host)
    thread.start()
    for text in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"index": 1, "facts": {"number of processes": 3, "code": "abc", "config": ',
    ):
        with reach(port) as stranger:
            stranger.sendall(text + b"\n")
    dead = reach(port)
    dead.sendall(
        json.dumps({"index": 1, "facts": {"number of processes": 3, **FACTS}}).encode() + b"\n"
    )
    time.sleep(0.2)
    dead.close()
    assert together([(1, FACTS, 3), (2, FACTS, 3)], port) == [None] * 2
    thread.join(30)
    assert not errors


def reach(port):
    """Connects to a process that listens, or soon will."""
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")
