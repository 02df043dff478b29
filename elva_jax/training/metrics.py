"""What a run reports: windows of steps, and a live line or plain lines for whoever watches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from elva_jax.training.goodput import STEP, clock_face
from elva_jax.utils.trees import key_path

# Fields that differ between two equal runs.
TIMING = (
    "seconds",
    "tokens_per_second",
    "model_tflops",
    "mfu",
    "memory_gib",
    *(f"{name}_share" for name in STEP),
)
TERMS = ("loss", "generation", "tube", "contrastive", "sigmoid")  # the losses, in the order shown
SUMMED = ("tokens", "forced", "overflow")  # add up over micro-batches and steps; others average
LAST = (
    "bad_steps",
    "bad_run",
    "learning_rate",
)  # reported as of the last step, not averaged over the window


class Window:
    """The steps since the last report; device arrays until they are asked for, one step late so that no device waits."""

    def __init__(self, steps: list[dict[str, Any]] | None = None):
        self._done: list[dict[str, Any]] = list(steps or [])
        self._pending: Mapping[str, Any] | None = None

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes a step's metrics, device arrays among them, and fetches those of the step before."""
        self.fetch()
        self._pending = metrics

    def fetch(self) -> list[dict[str, Any]]:
        """The metrics of all steps since the last report as numbers; waits for the last step."""
        if self._pending is not None:
            self._done.append(jax.tree.map(float, jax.device_get(dict(self._pending))))
            self._pending = None
        return list(self._done)

    @property
    def latest(self) -> dict[str, Any]:
        """The newest step that is already on the host; empty at the start of a window."""
        return self._done[-1] if self._done else {}

    def report(self) -> dict[str, Any]:
        """Closes the window: means over its steps of what is finite; counters and rate as of the last; `tokens` summed."""
        steps, self._done = self.fetch(), []
        out: dict[str, Any] = {}
        for name in steps[-1]:
            rows = [{name: step[name]} for step in steps if name in step]
            out |= jax.tree_util.tree_map_with_path(_over_steps, *rows)
        return out


def is_summed(path: jax.tree_util.KeyPath) -> bool:
    """Whether a metric is a count, which adds up over micro-batches and steps."""
    return key_path(path[-1:]) in SUMMED


def _over_steps(path: jax.tree_util.KeyPath, *values: float) -> float:
    if key_path(path[-1:]) in LAST:
        return values[-1]
    if is_summed(path):
        return sum(values)
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


class Progress:
    """Says how a stage goes: one live line on a terminal, a plain line a report elsewhere."""

    def __init__(self, console: Console, stage: str, steps: int):
        self._console, self._stage, self._start, self._steps = console, stage, 0, steps
        self._shown: dict[str, float] = {}
        self._began: float | None = (
            None  # when the first step was done, so that compilation does not count
        )
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False)

    def update(self, step: int, values: Mapping[str, float], report: bool) -> None:
        """Shows `values` at `step`: on a terminal at every call, elsewhere only reports (the means of a window)."""
        self._shown |= (
            values  # speed comes with reports only, and stays on the live line until the next
        )
        line = self._line(step, self._shown)
        if self._live:
            self._live.update(Text(line))
        if step == self._steps or (report and not self._live):
            self.note(line)

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        terms = [f"{name} {values[name]:.4f}" for name in TERMS if name in values]
        if "accuracy" in values:
            terms.append(f"accuracy {values['accuracy']:.1%}")
        if "merge/kept_mean" in values:
            terms.append(f"kept {values['merge/kept_mean']:.0%}")
        if "token_fill" in values:
            terms.append(f"filled {values['token_fill']:.0%}")
        if values.get("bad_steps"):
            terms.append(f"skipped {values['bad_steps']:.0f}")
        if "tokens_per_second" in values:
            terms.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in values:
            terms.append(f"MFU {values['mfu']:.1%}")
        if self._began is None:
            self._began, self._start = time.monotonic(), step
        elif step > self._start:
            left = (time.monotonic() - self._began) / (step - self._start) * (self._steps - step)
            terms.append(f"ETA {clock_face(left)}")
        return "  ".join([f"{self._stage} {step}/{self._steps}", *terms])
