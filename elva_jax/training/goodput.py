"""Where the time goes: step by step for reports, and over all starts of a run for its summary."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from elva_jax.utils.files import write_atomic

STEP = (
    "data",
    "host",
    "device",
)  # laps of a step: waiting for a batch, handing it over, waiting for the step before
LAPS = ("startup", *STEP, "save")


class StepClock:
    """Adds up laps. The first step of a process, which compiles, is part of the start-up.

    Attributes:
      total: seconds by lap since the beginning.
      timed: steps in `total`.
    """

    def __init__(self):
        self._mark = time.monotonic()
        self._running = False
        self._window: Counter[str] = Counter()
        self._steps = 0
        self.total: Counter[str] = Counter()
        self.timed = 0

    def lap(self, name: str) -> None:
        """The time since the last lap went into `name`."""
        now = time.monotonic()
        name = name if self._running else "startup"
        self.total[name] += now - self._mark
        self._window[name] += now - self._mark
        self._mark = now

    def step_done(self) -> None:
        """Closes a step."""
        self.timed += self._running
        self._steps += self._running
        self._running = True

    def report(self) -> dict[str, float]:
        """Seconds a step and the shares of its laps since the last report; {} before there is anything to tell."""
        if not self._steps:
            return {}
        seconds = sum(self._window[name] for name in STEP)
        out = {"seconds": seconds / self._steps}
        out |= {f"{name}_share": self._window[name] / max(seconds, 1e-9) for name in STEP}
        self._window, self._steps = Counter(), 0
        return out


class SaveTimer:
    """Says when a save by the clock is due; never with 0 minutes, and of several processes only to the first."""

    def __init__(self, minutes: float):
        self._seconds = minutes * 60 if jax.process_index() == 0 else 0
        self.restart()

    def restart(self) -> None:
        """Something has been saved."""
        self._begin = time.monotonic()

    @property
    def due(self) -> bool:
        return bool(self._seconds) and time.monotonic() - self._begin >= self._seconds


@dataclasses.dataclass
class Session:
    """One start of a process in one stage."""

    stage: str
    began: float  # seconds since 1970
    first: int  # step it went on from
    ended: float = 0.0  # when it was last heard of
    last: int = 0  # step it had reached then
    laps: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds


class Ledger:
    """`workdir/sessions.json`: all starts of a run, written by the first process."""

    def __init__(self, workdir: Path):
        self._path = workdir / "sessions.json"
        self._sessions = _read(self._path)
        self._began = time.time()

    def open(self, stage: str, step: int) -> None:
        """A stage goes on from `step`."""
        self._sessions.append(Session(stage, self._began, step, time.time(), step))

    def update(self, step: int, clock: StepClock) -> None:
        """The open session has reached `step`."""
        session = self._sessions[-1]
        session.last, session.laps = step, {name: round(clock.total[name], 3) for name in LAPS}
        session.ended = self._began = time.time()  # where the next stage begins
        if jax.process_index() == 0:
            write_atomic(
                self._path,
                json.dumps([dataclasses.asdict(entry) for entry in self._sessions]) + "\n",
            )

    def summary(self) -> dict[str, Any]:
        """The whole run's time and what it went into, in seconds, and goodput: the share of it that made steps that count."""
        return summary(self._sessions)


def summary(sessions: list[Session]) -> dict[str, Any]:
    """As `Ledger.summary`. Steps behind the one that the next start of their stage went on from had to be done again."""
    if not sessions:
        return {}
    wall = max(entry.ended for entry in sessions) - sessions[0].began
    parts = dict.fromkeys(("productive", "data", "save", "startup", "again"), 0.0)
    for index, entry in enumerate(sessions):
        later = [other.first for other in sessions[index + 1 :] if other.stage == entry.stage]
        done, kept = entry.last - entry.first, min([entry.last, *later]) - entry.first
        share = max(kept, 0) / done if done else 0.0
        spent = {name: entry.laps.get(name, 0.0) for name in LAPS}
        parts["productive"] += share * (spent["host"] + spent["device"])
        parts["data"] += share * spent["data"]
        parts["again"] += (1 - share) * sum(spent[name] for name in STEP)
        parts["save"] += spent["save"]
        parts["startup"] += spent["startup"]
    parts["away"] = max(wall - sum(parts.values()), 0.0)
    starts = len(
        {
            entry.began
            for entry in sessions
            if entry.began not in {other.ended for other in sessions}
        }
    )
    return {
        "wall": wall,
        "goodput": parts["productive"] / max(wall, 1e-9),
        "starts": starts,
        **parts,
    }


def in_words(totals: dict[str, Any]) -> str:
    """A summary in one line."""
    names = {
        "data": "waiting for data",
        "save": "saving",
        "startup": "starting and compiling",
        "again": "steps done again",
        "away": "not running",
    }
    lost = ", ".join(
        f"{words} {totals[name] / max(totals['wall'], 1e-9):.1%}" for name, words in names.items()
    )
    return f"goodput {totals['goodput']:.1%} of {clock_face(totals['wall'])} in {totals['starts']} start(s); {lost}"


def clock_face(seconds: float) -> str:
    """[h:]mm:ss"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _read(path: Path) -> list[Session]:
    try:
        return [Session(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []
