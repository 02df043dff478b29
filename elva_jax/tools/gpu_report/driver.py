"""Runs the parts one after another, each in a process with its own limit, within one budget."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elva_jax.tools.gpu_report import page
from elva_jax.tools.gpu_report.registry import Part
from elva_jax.utils.files import write_atomic
from elva_jax.utils.json import save_json

GRACE, LEAST = 5.0, 12.0  # of `Settings`
POLL_SECONDS = 0.2
SHOWN = 300  # characters of an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that all parts share."""

    output: Path
    seconds: float  # for all parts together
    dry: bool = False
    programs: Path | None = None  # folder of compiled programs
    card: str = ""
    peak_tflops: float = 0.0
    bandwidth: float = 0.0
    least: float = LEAST  # seconds; with less left, no part is started
    grace: float = GRACE  # seconds that a worker has to end by itself after its limit


class Report:
    """report.json and report.md, written after every part.

    Parts that an earlier run of the script has finished are kept.
    """

    def __init__(self, settings: Settings, about: dict[str, Any]):
        self._settings = settings
        self._path = settings.output / "report.json"
        self.parts: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            before = json.loads(self._path.read_text(encoding="utf-8"))
            if before["about"] == about:
                self.parts = before["parts"]
        self._about = about

    def done(self, name: str) -> bool:
        """Whether an earlier run has finished this part."""
        return self.parts.get(name, {}).get("status") == "done"

    def add(self, name: str, status: str, seconds: float = 0.0, note: str = "") -> None:
        """Stores the result of a part, with all that it has measured."""
        entry = {"status": status, "seconds": round(seconds, 1), "note": note}
        self.parts[name] = entry | {"rows": rows_of(rows_file(self._settings.output, name))}
        self.write()

    def write(self) -> None:
        """Writes both files, each as a whole."""
        report = {"about": self._about, "parts": self.parts}
        save_json(report, self._path)
        write_atomic(self._settings.output / "report.md", page.markdown(report))


def rows_file(output: Path, name: str) -> Path:
    """Where a part writes its measurements."""
    return output / "parts" / f"{name}.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The measurements of a part; a line that a killed process has not finished is left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


class Running:
    """The process of a part."""

    def __init__(self, part: Part, settings: Settings, limit: float):
        self.part, self._limit, self._start = part, limit, time.monotonic()
        file, self._log = rows_file(settings.output, part.name), self._log_file(part, settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        words = part.command or (sys.executable, "-m", "elva_jax.tools.gpu_report.worker")
        arguments = [*words, part.name, "--rows", str(file), f"--limit={limit:.1f}"]
        arguments += [f"--card={settings.card}", f"--peak-tflops={settings.peak_tflops}"]
        arguments += [f"--bandwidth={settings.bandwidth}"]
        arguments += ["--dry-run"] if settings.dry else []
        arguments += [f"--programs={settings.programs}"] if settings.programs else []
        environment = {**os.environ, **dict(part.environment), "PYTHONUNBUFFERED": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @staticmethod
    def _log_file(part: Part, settings: Settings) -> Path:
        folder = settings.output / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{part.name}.txt"

    def wait(self, seconds: float, stop: threading.Event) -> tuple[str, float, str]:
        """Status, seconds and a note, after at most this long; the process has ended then.

        `stop` ends it early.
        """
        end, code = time.monotonic() + seconds, None
        while code is None and not stop.is_set():
            left = end - time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(min(max(left, 0.0), POLL_SECONDS))
            if left <= 0:
                break
        if code is None:
            self.kill()
        taken = time.monotonic() - self._start
        if code == 0:
            return "done", taken, ""
        if code is None and stop.is_set():
            return "interrupted", taken, ""
        if code is None or taken >= self._limit:
            return "time limit", taken, f"stopped after {taken:.0f} s"
        return "failed", taken, self._last_words(code)

    def _last_words(self, code: int) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"exit status {code}: {last.strip()}"[:SHOWN]

    def kill(self) -> None:
        """Ends the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def run_parts(
    parts: Sequence[Part],
    settings: Settings,
    about: dict[str, Any],
    stop: threading.Event | None = None,
) -> Report:
    """Runs what is not done yet; whatever ends it, the report has all measurements so far.

    Args:
      parts: in the order of their value; those in the background start first.
      settings: of all parts.
      about: of the card; an earlier report about another one is not continued.
      stop: ends the part that runs, and starts no other.
    """
    stop, end = stop or threading.Event(), time.monotonic() + settings.seconds
    report = Report(settings, about)
    todo = [part for part in parts if not report.done(part.name)]
    beside: list[Running] = []
    try:
        for part in sorted(todo, key=lambda part: not part.background):
            left = end - time.monotonic()
            if stop.is_set():
                break
            if left < settings.least:
                report.add(part.name, "not started", note="the time was used up")
                continue
            limit = min(part.seconds, max(left - settings.grace, left / 2))
            _say(f"{part.name}: at most {limit:.0f} s")
            running = Running(part, settings, limit)
            if part.background:
                beside.append(running)
                continue
            result = running.wait(limit + settings.grace, stop)
            report.add(part.name, *result)
            _say(f"{part.name}: {result[0]} after {result[1]:.0f} s {result[2]}")
        for running in beside:
            report.add(running.part.name, *running.wait(end - time.monotonic(), stop))
    finally:
        for running in beside:
            running.kill()
        report.write()
    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
