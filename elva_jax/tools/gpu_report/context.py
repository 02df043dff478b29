"""The context of a part of the report: sizes, the card, and where its measurements go."""

from __future__ import annotations

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from elva_jax.tools.bench.timing import Spread, spread
from elva_jax.tools.gpu_report.cards import Card
from elva_jax.utils.json import jsonable

ENOUGH_SECONDS = 0.25  # of one timed round
ROUNDS = 3
MOST_CALLS = 50  # of one timed round
THREADS = 8  # that compile


class Context:
    """The surroundings of one part.

    Args:
      rows: the file of measurements; a line of JSON each.
      card: whose peaks shares are relative to.
      dry: small shapes for a CPU, which prove that the part works.
    """

    def __init__(self, rows: Path, card: Card, *, dry: bool):
        self.card, self.dry, self._rows = card, dry, rows

    def emit(self, row: dict[str, Any]) -> None:
        """Writes a measurement at once."""
        with self._rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(row), allow_nan=False) + "\n")

    @contextlib.contextmanager
    def case(self, name: str, **about: Any) -> Iterator[dict[str, Any]]:
        """One measurement, which the block fills in; an error in it becomes the measurement."""
        row: dict[str, Any] = {"case": name, **about}
        try:
            yield row
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        finally:
            self.emit(row)
            gc.collect()  # a failed case's arrays hang on its frames

    def share(self, amount: float, seconds: float, peak: float | None) -> float | None:
        """The share of a peak per second; None where the card's peak is unknown."""
        return amount / seconds / peak if peak else None


def per_call(run: Callable[[], Any]) -> Spread:
    """Seconds of a call when calls follow each other, which hides the time of launching them.

    `run` must have been called before, so that it is compiled.
    """
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - start
    calls = min(max(int(ENOUGH_SECONDS / max(once, 1e-6)), 1), MOST_CALLS)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            out = run()
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - start) / calls)
    return spread(seconds)


def compile_all(programs: dict[str, tuple[Any, tuple[Any, ...]]]) -> dict[str, Any]:
    """Compiles several programs at once.

    Args:
      programs: by name, a jitted function and its arguments, arrays or shapes.

    Returns:
      The compiled programs by name; an exception in place of one that does not compile.
    """
    # Tracing depends on settings of this thread; only XLA runs in others.
    lowered = [_or_error(partial(one.lower, *inputs)) for one, inputs in programs.values()]

    def build(program: Any) -> Any:
        return program if isinstance(program, Exception) else _or_error(program.compile)

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(programs, pool.map(build, lowered), strict=True))


def _or_error(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error
