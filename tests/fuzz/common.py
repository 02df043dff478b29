"""What the fuzz harnesses share: the loop, coverage guidance, bounds and the report.

A harness is a target, which feeds one input through a door of the package, some seeds, and a
grammar that makes inputs from nothing. A finding is an exception that is not the package's own
error, an input that takes more than LIMIT seconds, or memory that grows by more than MEMORY bytes.

With atheris installed (`pip install atheris`) the inputs are guided by the coverage of the package;
without it, inputs that end in a new way (another error, or from another line) are mutated further.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.util
import inspect
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import ElvaError

LIMIT, STUCK = 10.0, 240.0  # seconds: a finding; the process is given up
MEMORY = 2 * 2**30
WORDS = [
    *("0", "-1", "1", "NaN", "Infinity", "-Infinity", "1e400", "1e-400", "100000000000000000000"),
    *("null", "true", "false", '""', "[]", "{}", "()", "[0]", "\\u0000", "\\ud800", "\ufeff", "²"),
    *("2147483648", "-9223372036854775809", "9" * 50, "'x'", "0.5", "<video>", "<image>", "../x"),
]
Target = Callable[[bytes, Path], object]
Grow = Callable[[random.Random], bytes]


class Slow(BaseException):
    """An input took longer than LIMIT."""


class Fuzz:
    """One run of a harness.

    Args:
      target: feeds one input through a door; gets the input and an empty folder.
      grow: makes an input from nothing.
      seeds: inputs to start from.
      seed: of the random choices.
      findings: folder for findings and the corpus.
    """

    def __init__(
        self, target: Target, grow: Grow, seeds: Sequence[bytes], seed: int, findings: Path
    ) -> None:
        self.target, self.grow, self.random = target, grow, random.Random(seed)
        self.folder, self.corpus = findings, list(seeds)
        self.tried, self.outcomes, self.found = 0, {}, {}  # counts by kind; findings by place
        self.work = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.start = time.monotonic()

    def one(self, data: bytes) -> None:
        """Feeds one input, and keeps it if it is a finding or ends in a new way."""
        self.tried += 1
        (self.folder / "current").write_bytes(data)
        box = self.work / "box"
        box.mkdir()
        before, problem, error = _resident(), None, None
        faulthandler.dump_traceback_later(STUCK, exit=True)
        start = time.monotonic()
        try:
            with _limit(LIMIT):
                self.target(data, box)
        except Slow:
            problem, error = "slow", sys.exc_info()[1]
        except ElvaError as raised:
            error = raised
            if "\n" in str(raised) or not str(raised).strip():
                problem = "not one line"
        except SystemExit as raised:
            error, problem = raised, None if raised.code == 2 else "exit"
        except BaseException as raised:
            error, problem = raised, type(raised).__name__
        finally:
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(box, ignore_errors=True)
        if _resident() - before > MEMORY:
            problem = "memory"
        outcome = f"{type(error).__name__}: {_place(error)}" if error else "accepted"
        if problem:
            self._keep(f"{problem} {outcome}", data, error, time.monotonic() - start)
        elif outcome not in self.outcomes or self.random.random() < 0.001:
            self.corpus.append(data)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _keep(self, name: str, data: bytes, error: BaseException | None, seconds: float) -> None:
        self.found[name] = self.found.get(name, 0) + 1
        if self.found[name] > 1:
            return
        text = "".join(traceback.format_exception(error)) if error else ""
        at = self.folder / f"finding{len(self.found)}"
        at.with_suffix(".bin").write_bytes(data)
        at.with_suffix(".txt").write_text(
            f"{name}\n{seconds:.1f} s\n{data[:2000]!r}\n{text}", errors="replace"
        )
        print(f"FINDING {name}: {at}.txt", flush=True)

    def next_input(self) -> bytes:
        """A new input: from the grammar, or a mutation of one that ended in a new way."""
        if not self.corpus or self.random.random() < 0.4:
            return self.grow(self.random)
        return mutate(self.random, self.random.choice(self.corpus), self.corpus)

    def report(self) -> dict[str, Any]:
        """The numbers of the run, which are printed too."""
        shutil.rmtree(self.work, ignore_errors=True)
        numbers = {
            "minutes": round((time.monotonic() - self.start) / 60, 1),
            "inputs": self.tried,
            "corpus": len(self.corpus),
            "outcomes": len(self.outcomes),
            "findings": self.found,
        }
        (self.folder / "report.json").write_text(json.dumps(numbers | {"ends": self.outcomes}))
        print(json.dumps(numbers), flush=True)
        return numbers


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few changes of bytes, numbers, words and pieces."""
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, size = rng.randrange(len(data) + 1), rng.choice((0, 1, 2, 4, 16))
        word = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        spans = [m.span() for m in re.finditer(rb'"[^"]*"|-?\d+(?:\.\d+)?|\w+', data)]
        kind = rng.randrange(8)
        if kind < 3 and spans:  # a value for a value
            begin, end = rng.choice(spans)
            data = data[:begin] + word + data[end:]
        elif kind == 3:
            data = data[:at] + word + data[at + size :]
        elif kind == 4:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
        elif kind == 5:
            other = rng.choice(others)
            data = data[:at] + other[rng.randrange(len(other) + 1) :]
        elif kind == 6:
            piece = data[at : at + rng.choice((1, 8, 64))]
            data = data[:at] + piece * rng.choice((2, 3, 50, 3000)) + data[at:]
        else:
            data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data[::1]
        data = data[: 2**20]
    return data


def value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False, 0, -1, 1, 0.5, 2**31, -(2**63), 10**20, 10**400])
    if kind == 1:
        return rng.choice([float("nan"), float("inf"), -float("inf"), 1e-320, 1e300, -0.0])
    if kind < 6:
        return rng.choice([*WORDS, "x", "a.mp4", "image", "user", " " * 9, "\n", "x" * 5000])
    if kind < 8:
        return [value(rng, depth - 1) for _ in range(rng.choice((0, 1, 2, 5)))]
    names = ["type", "role", "content", "image", "video", "id", "from", "value", "text", "x"]
    return {rng.choice(names): value(rng, depth - 1) for _ in range(rng.choice((0, 1, 3)))}


def spoil(rng: random.Random, held: Any, chance: float = 0.15) -> Any:
    """A copy of a JSON value some of whose parts are something else, missing or new."""
    if rng.random() < chance:
        return value(rng)
    if isinstance(held, dict):
        out = {k: spoil(rng, v, chance) for k, v in held.items() if rng.random() > chance / 3}
        return out | ({"extra": value(rng)} if rng.random() < chance / 3 else {})
    if isinstance(held, list):
        out = [spoil(rng, v, chance) for v in held if rng.random() > chance / 3]
        return out * 2 if rng.random() < chance / 3 else out
    return held


def dump(rng: random.Random, held: Any) -> bytes:
    """JSON text of a value, rarely nested deeper than any parser goes."""
    text = json.dumps(held, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.02:
        deep = rng.choice((50, 2000, 100_000))
        text = "[" * deep + text + "]" * deep
    return text.encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Ends the block after that much processor time, or twelve times as long of a wait."""
    used, start = time.process_time(), time.monotonic()

    def ring(number: int, frame: object) -> None:
        if time.process_time() - used >= seconds or time.monotonic() - start >= 12 * seconds:
            raise Slow
        signal.setitimer(signal.ITIMER_REAL, seconds)  # other work has kept the processor

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException | None) -> str:
    """File and line of our code that an exception left last."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    ours = [f for f in frames if "elva_jax" in f.filename and "fuzz" not in f.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "outside"


def _instrument(atheris: Any) -> None:
    """Makes atheris see the branches of what is imported of the package."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "elva_jax":
            continue
        held = list(vars(module).values())
        held += [v for c in held if inspect.isclass(c) for v in vars(c).values()]
        for function in held:
            if inspect.isfunction(function) and function.__module__ == name:
                atheris.instrument_func(function)


def _guided(fuzz: Fuzz, minutes: float, seed: int) -> None:
    import atheris

    _instrument(atheris)
    corpus = fuzz.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(fuzz.corpus):
        (corpus / f"seed{number}").write_bytes(data)
    end = fuzz.start + 60 * minutes

    def test(data: bytes) -> None:
        fuzz.one(data)
        if time.monotonic() > end:
            fuzz.corpus = list(corpus.iterdir())
            found = fuzz.report()["findings"]
            os._exit(bool(found))  # libFuzzer knows no other end

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return fuzz.grow(rng)[:most]
        if rng.random() < 0.3:
            return atheris.Mutate(data, most)
        return mutate(rng, data, [data])[:most]

    words = [sys.argv[0], str(corpus), f"-seed={seed or 1}", "-max_len=65536", "-rss_limit_mb=0"]
    atheris.Setup([*words, "-verbosity=0"], test, custom_mutator=change)
    atheris.Fuzz()


def smoke(target: Target, grow: Grow, seeds: Sequence[bytes], inputs: int, folder: Path) -> dict:
    """A few inputs, for the suite."""
    fuzz = Fuzz(target, grow, seeds, 0, folder)
    for data in [*seeds, *(fuzz.next_input() for _ in range(inputs))]:
        fuzz.one(data)
    return fuzz.report()


def main(target: Target, grow: Grow, seeds: Sequence[bytes]) -> None:
    """The command line of a harness; the exit status is 1 if there are findings."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, required=True)
    args = parser.parse_args()
    args.findings.mkdir(parents=True, exist_ok=True)
    fuzz = Fuzz(target, grow, seeds, args.seed, args.findings)
    for data in seeds:
        fuzz.one(data)
    if importlib.util.find_spec("atheris"):
        _guided(fuzz, args.minutes, args.seed)
        return
    while time.monotonic() < fuzz.start + 60 * args.minutes:
        fuzz.one(fuzz.next_input())
    sys.exit(bool(fuzz.report()["findings"]))
