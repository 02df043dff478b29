"""Where the time of a run goes: step by step for reports, over all its starts for its summary.

    start-up | data host device | data host device | evaluate | save | data host device | ...
             |<---- step 2 ---->|

goodput = time of steps that count / (end of the last start - begin of the first one)
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from elva_jax.errors import TrainingError
from elva_jax.utils.files import write_atomic
from elva_jax.utils.read import read_json

# A step: waiting for a batch, dispatching it, waiting for the step before.
STEP_PARTS = ("data", "host", "device")
PARTS = ("startup", *STEP_PARTS, "save", "evaluate")
LOSSES = {  # parts of a summary that made no progress
    "data": "waiting for data",
    "save": "saving",
    "evaluate": "evaluating",
    "startup": "starting and compiling",
    "again": "steps done again",
    "away": "not running",
}


class StepClock:
    """Adds up seconds by what they were spent on.

    All before the end of a process's first step, which compiles, is start-up.

    Attributes:
      total: seconds since the beginning, by part.
    """

    def __init__(self) -> None:
        self.total: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._window = dict.fromkeys(PARTS, 0.0)  # since the last report
        self._last, self._steps, self._started = time.monotonic(), 0, False

    def charge(self, part: str) -> None:
        """Charges the time since the last call to a part."""
        now, part = time.monotonic(), part if self._started else "startup"
        for seconds in (self.total, self._window):
            seconds[part] += now - self._last
        self._last = now

    def finish_step(self) -> None:
        """Counts a step."""
        self._steps += self._started
        self._started = True

    def report(self) -> dict[str, float]:
        """Seconds per step and the shares of its parts since the last report; {} without steps."""
        if not self._steps:
            return {}
        seconds = sum(self._window[name] for name in STEP_PARTS)
        out = {"seconds": seconds / self._steps}
        out |= {f"{name}_share": self._window[name] / max(seconds, 1e-9) for name in STEP_PARTS}
        self._window, self._steps = dict.fromkeys(PARTS, 0.0), 0
        return out


@dataclasses.dataclass(kw_only=True)
class Session:
    """One stage in one start of a process."""

    stage: str
    began: float  # seconds since 1970
    first: int  # step that it continued from
    ended: float = 0.0  # when it last reported
    last: int = 0  # step that it had reached then
    laps: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds by part


class SessionLog:
    """All sessions of a run, in `workdir/sessions.json`, which the first process writes."""

    def __init__(self, workdir: Path):
        self._path = workdir / "sessions.json"
        self._sessions = _read(self._path)
        self._began = time.time()

    def begin(self, stage: str, step: int) -> None:
        """Opens a session of a stage that continues from `step`."""
        self._sessions.append(
            Session(stage=stage, began=self._began, first=step, ended=time.time(), last=step)
        )

    def update(self, step: int, clock: StepClock) -> None:
        """The open session has reached `step`."""
        session = self._sessions[-1]
        session.last, session.laps = step, {name: round(clock.total[name], 3) for name in PARTS}
        session.ended = self._began = time.time()  # where the next stage begins
        if jax.process_index() == 0:
            sessions = [dataclasses.asdict(session) for session in self._sessions]
            write_atomic(self._path, json.dumps(sessions) + "\n")

    def summary(self) -> dict[str, Any]:
        """The summary of all sessions."""
        return summarize(self._sessions)


def summarize(sessions: Sequence[Session]) -> dict[str, Any]:
    """Seconds of a whole run by part, and goodput: the share that made steps that count.

    Steps after the one from which the next session of their stage continued were done again.
    """
    if not sessions:
        return {}
    wall = max(session.ended for session in sessions) - sessions[0].began
    parts = dict.fromkeys(("productive", "data", "save", "evaluate", "startup", "again"), 0.0)
    for index, session in enumerate(sessions):
        later = [other.first for other in sessions[index + 1 :] if other.stage == session.stage]
        done, kept = session.last - session.first, min([session.last, *later]) - session.first
        share = max(kept, 0) / done if done else 0.0
        spent = {name: session.laps.get(name, 0.0) for name in PARTS}
        parts["productive"] += share * (spent["host"] + spent["device"])
        parts["data"] += share * spent["data"]
        parts["again"] += (1 - share) * sum(spent[name] for name in STEP_PARTS)
        parts["save"] += spent["save"]
        parts["evaluate"] += spent["evaluate"]
        parts["startup"] += spent["startup"]
    parts["away"] = max(wall - sum(parts.values()), 0.0)
    # A stage that follows another one in the same process begins where that ended.
    starts = {session.began for session in sessions} - {session.ended for session in sessions}
    goodput = parts["productive"] / max(wall, 1e-9)
    share = parts["evaluate"] / max(wall, 1e-9)
    return {
        "wall": wall,
        "goodput": goodput,
        "evaluate_share": share,
        "starts": len(starts),
        **parts,
    }


def describe(summary: dict[str, Any]) -> str:
    """A summary in one line."""
    wall = summary["wall"]
    lost = ", ".join(
        f"{words} {summary[name] / max(wall, 1e-9):.1%}"
        for name, words in LOSSES.items()
        if summary[name] or name != "evaluate"  # not every run evaluates
    )
    starts = summary["starts"]
    return f"goodput {summary['goodput']:.1%} of {clock_face(wall)} in {starts} start(s); {lost}"


def clock_face(seconds: float) -> str:
    """Formats seconds as [h:]mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _read(path: Path) -> list[Session]:
    """The sessions of a file; none if it is missing or damaged."""
    try:
        return [Session(**entry) for entry in read_json(path, TrainingError, list)]
    except (TrainingError, TypeError):
        return []
