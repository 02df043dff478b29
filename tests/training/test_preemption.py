"""Tests of signals, saves at time intervals, and the consensus of processes."""

import os
import signal
import time

import jax
import numpy as np
import pytest

from elva_jax.training import preemption
from elva_jax.training.hooks import SaveTimer
from elva_jax.training.preemption import INTERRUPTED, PREEMPTED, Consensus, StopSignal


@pytest.fixture
def heard():
    """The signals that reach the previously installed handlers."""
    got, old = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        old[number] = signal.signal(number, lambda number, _: got.append(number))
    yield got
    for number, handler in old.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


def test_second_ctrl_c_quits_immediately(heard, capfd):
    with StopSignal() as stop:
        send(signal.SIGINT)  # before the first step there is nothing to save
        assert (stop.code, heard.pop()) == (0, signal.SIGINT)
        stop.defer()
        send(signal.SIGINT)
        assert (stop.code, heard) == (INTERRUPTED, [])
        send(signal.SIGINT)
        assert heard == [signal.SIGINT]
    assert "Press Ctrl-C again to quit now" in capfd.readouterr().err


def test_a_scheduler_may_send_its_signal_twice(heard):
    with StopSignal() as stop:
        stop.defer()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert (stop.code, heard) == (PREEMPTED, [])
    send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_saves_at_time_intervals(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    never, timer = SaveTimer(0.0), SaveTimer(2.0)
    now[0] = 119.0
    assert not timer.due
    now[0] = 121.0
    assert timer.due
    assert not never.due
    timer.on_save(1)
    now[0] = 240.0
    assert not timer.due


def test_consensus_is_the_maximum_of_each_value(monkeypatch):
    """A simulated second process has this process's values; `previous` lags by one call."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    alone = Consensus(mesh, "alone")
    assert alone.previous([3, 0]) == alone.now([3, 0]) == [3, 0]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    # A single process waits for no other.
    monkeypatch.setattr(preemption, "barrier", lambda name: None)
    two = Consensus(mesh, "two")
    assert [two.previous([3, 0]), two.previous([0, 1]), two.previous([0, 0]), two.now([0, 75])] == [
        [0, 0],
        [3, 0],
        [0, 1],
        [0, 75],
    ]
    assert np.asarray(two._send([1, 2])).shape == (2,)
