"""Works through the jobs of a study; several processes, on any hosts, may do so in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

from elva_jax.errors import StartError
from elva_jax.tools.study.jobs import COST, FAILED, JOB, RESULT, Job
from elva_jax.tools.study.machine import describe_machine
from elva_jax.tools.study.reuse import take_training
from elva_jax.utils import owner, signals
from elva_jax.utils.files import write_atomic
from elva_jax.utils.json import jsonable
from elva_jax.utils.read import read_json

POLL_SECONDS = 0.2
SAVE_SECONDS = 600.0  # for a training that was told to stop, until it is killed
WAIT_SECONDS = 5.0  # between two looks at jobs of other processes
LAST_LINES = 5  # of a log, in failed.json
STOPPED = (128 + signal.SIGINT, os.EX_TEMPFAIL, 128 + signal.SIGTERM)  # statuses of `elva train`

State = Literal["done", "failed", "busy", "stopped", "waiting"]


class Stop:
    """Within the block, signals and a deadline ask for the end; a second Ctrl-C acts at once.

    Args:
      minutes: until the deadline; None: none.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self.number = 0  # of the signal
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in signals.SIGNALS:
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def __bool__(self) -> bool:
        """Whether the end was asked for."""
        return bool(self.number) or (self._end is not None and time.monotonic() > self._end)

    @property
    def status(self) -> int:
        """The exit status: the same command continues (75), or Ctrl-C (130)."""
        return 128 + signal.SIGINT if self.number == signal.SIGINT else os.EX_TEMPFAIL

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            signal.signal(number, self._old[number])
            signal.raise_signal(number)
        self.number = self.number or number


def work(
    jobs: Sequence[Job], stop: Stop, report: Callable[[str], None], others: Sequence[Path] = ()
) -> dict[str, State]:
    """Does every job that no other process does, and waits for those of others.

    Args:
      jobs: in order.
      stop: asks for the end; a training then saves, and a later start continues it.
      report: receives a line about each job.
      others: folders of other studies, whose finished trainings are copied where they are the same.

    Returns:
      By folder what became of each job; a job is tried once, and so is each that needs it.
    """
    states: dict[str, State] = {}
    while not stop:
        for job in jobs:
            if states.get(str(job.folder)) not in ("done", "failed") and not stop:
                states[str(job.folder)] = _try(job, states, stop, report, others)
        if not {"busy", "waiting"} & set(states.values()):
            break
        _sleep(stop)
    return {str(job.folder): states.get(str(job.folder), "stopped") for job in jobs}


def _sleep(stop: Stop) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and not stop:
        time.sleep(POLL_SECONDS)


def _try(
    job: Job,
    states: dict[str, State],
    stop: Stop,
    report: Callable[[str], None],
    others: Sequence[Path],
) -> State:
    if job.done:
        return "done"
    if job.needs is not None:
        before = states.get(str(job.needs), "waiting")
        if before != "done":
            return "failed" if before == "failed" else "waiting"
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with owner.own(job.folder), _unused(job):
            return "done" if job.done else _run(job, stop, report, others)
    except StartError:
        return "busy"


@contextlib.contextmanager
def _unused(job: Job) -> Iterator[None]:
    """Raises StartError where a training whose starter was killed still writes the run."""
    if job.command and job.run.is_dir():
        with owner.own(job.run):
            pass
    yield


def _run(job: Job, stop: Stop, report: Callable[[str], None], others: Sequence[Path]) -> State:
    write_atomic(job.folder / JOB, json.dumps(job.identity, indent=1))
    (job.folder / FAILED).unlink(missing_ok=True)
    taken = take_training(job, others)
    if taken:
        report(f"{job.label}: taken from {taken}")
    elif job.command:
        report(f"{job.label}: training")
        words = ["elva_jax.cli", "train", *job.command, "--workdir", str(job.run)]
        state = _call(job, words, "train", stop)
        if state != "done":
            return _ended(job, state, "train", report)
    done = {"identity": job.identity, "variant": job.variant, "seed": job.seed}
    if job.evaluate is not None:
        report(f"{job.label}: measuring")
        asked, answers = job.folder / "asked.json", job.folder / "answers.json"
        text = json.dumps(jsonable({"run": str(job.run), "evaluate": job.evaluate}))
        write_atomic(asked, text)
        words = ["elva_jax.tools.study.measure", str(asked), str(answers)]
        state = _call(job, words, "measure", stop)
        if state != "done":
            return _ended(job, state, "measure", report)
        done |= read_json(answers)
        answers.unlink()
        asked.unlink()
    done |= {"cost": _cost(job), "machine": describe_machine()}
    write_atomic(job.folder / RESULT, json.dumps(done))
    return "done"


def _ended(job: Job, state: State, part: str, report: Callable[[str], None]) -> State:
    if state == "failed":
        log = job.folder / f"{part}.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        write_atomic(job.folder / FAILED, json.dumps({"part": part, "end": lines[-LAST_LINES:]}))
        report(f"{job.label}: failed: {lines[-1] if lines else 'no output'} (see {log})")
    return state


def _call(job: Job, words: Sequence[str], part: str, stop: Stop) -> State:
    """Runs a module in a process whose output goes to a log, and adds its cost."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    _save_cost(job, part, None)
    cache = job.folder.parent.parent / "programs"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ, **job.environment}
    with (job.folder / f"{part}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches it through `stop` alone
        )
        told = False
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if stop and not told:
                process.send_signal(signal.SIGTERM)
                told, killed_at = True, time.monotonic() + SAVE_SECONDS
            if told and time.monotonic() > killed_at:
                process.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    _save_cost(job, part, (time.monotonic() - start, used))
    if process.returncode == 0:
        return "done"
    stopped = process.returncode in STOPPED or process.returncode == -signal.SIGTERM
    return "stopped" if told and stopped else "failed"


def _save_cost(job: Job, part: str, used: tuple[float, float] | None) -> None:
    """Notes a start with its seconds and its seconds of processor time.

    `used` is None before it ends: the start counts as killed, and stays so if this process is.
    """
    parts = _cost(job)
    if used is not None:
        parts.pop()  # of this start
    seconds, cpu_seconds = used or (0.0, 0.0)
    entry = {"part": part, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    parts.append(entry | ({} if used else {"killed": True}))
    write_atomic(job.folder / COST, json.dumps({"parts": parts}))


def _cost(job: Job) -> list[Any]:
    path = job.folder / COST
    return list(read_json(path)["parts"]) if path.is_file() else []
