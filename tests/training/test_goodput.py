"""Tests of the accounting of a run's time."""

import dataclasses
import time

import pytest

from elva_jax.training.goodput import Session, SessionLog, StepClock, describe, summarize
from elva_jax.training.preemption import PREEMPTED


def test_times_of_a_window_add_up_and_the_first_step_is_startup(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def step(data, host, device, save=0.0):
        for name, seconds in (("data", data), ("host", host), ("device", device)):
            now[0] += seconds
            clock.charge(name)
        clock.finish_step()
        now[0] += save
        clock.charge("save")

    clock = StepClock()
    step(1.0, 20.0, 2.0)
    assert clock.report() == {}
    step(1.0, 2.0, 5.0, save=7.0)
    step(3.0, 0.0, 5.0)
    assert clock.report() == pytest.approx(
        {"seconds": 8.0, "data_share": 0.25, "host_share": 0.125, "device_share": 0.625}
    )
    step(1.0, 0.0, 1.0)
    assert clock.report() == pytest.approx(
        {"seconds": 2.0, "data_share": 0.5, "host_share": 0.0, "device_share": 0.5}
    )
    assert clock.total == pytest.approx(
        {"startup": 23.0, "data": 5.0, "host": 2.0, "device": 11.0, "save": 7.0, "evaluate": 0.0}
    )


def session(stage, began, ended, first, last, **laps):
    return Session(stage=stage, began=began, first=first, ended=ended, last=last, laps=laps)


def test_goodput_counts_each_step_once_and_all_time():
    """100 s to step 40, a kill, 20 s later from step 30 to 50, then a second stage."""
    found = summarize(
        [
            session("a", 1000, 1100, 0, 40, startup=20, data=8, host=12, device=20, save=10),
            session(
                "a", 1120, 1170, 30, 50, startup=10, data=4, host=2, device=8, save=1, evaluate=4
            ),
            session("b", 1170, 1200, 0, 10, startup=5, device=20),
        ]
    )
    assert found["wall"] == 200
    assert found["starts"] == 2
    parts = {
        "productive": 0.75 * 32 + 10 + 20,
        "data": 0.75 * 8 + 4,
        "again": 0.25 * 40,
        "save": 11,
        "startup": 35,
        "evaluate": 4,
    }
    assert {name: found[name] for name in parts} == pytest.approx(parts)
    assert found["away"] == pytest.approx(200 - sum(parts.values()))
    assert found["goodput"] == pytest.approx(54 / 200)
    assert found["evaluate_share"] == pytest.approx(4 / 200)
    assert describe(found).startswith(
        "goodput 27.0% of 3:20 in 2 start(s); waiting for data 5.0%, saving 5.5%, evaluating 2.0%, "
    )


def test_log_survives_the_process_and_a_damaged_file(tmp_path):
    clock = StepClock()
    for _ in range(2):
        log = SessionLog(tmp_path)
        log.begin("a", 0)
        log.update(4, clock)
        log.begin("b", 0)
        log.update(2, clock)
    assert log.summary()["starts"] == 2
    assert len(SessionLog(tmp_path)._sessions) == 4
    (tmp_path / "sessions.json").write_text("[{")
    assert SessionLog(tmp_path).summary() == {}


def test_session_includes_the_contents_of_the_file():
    entry = session("a", 1.5, 2.5, 3, 4, save=1.0)
    assert Session(**dataclasses.asdict(entry)) == entry


def test_exit_status_of_preemption():
    """It is EX_TEMPFAIL of sysexits.h; the Slurm script requeues the job on it."""
    assert PREEMPTED == 75
