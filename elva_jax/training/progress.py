"""Shows how a stage gets on: a live line on a terminal, a plain line per report elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from elva_jax.training.goodput import clock_face
from elva_jax.training.metrics import TERMS
from elva_jax.utils.terminal import is_watched

FORMATS = {  # of the metrics after the losses
    "accuracy": "accuracy {:.1%}",
    "merge/kept_mean": "kept {:.0%}",
    "token_fill": "filled {:.0%}",
    "bad_steps": "skipped {:.0f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
}


class StageProgress:
    """The progress of one stage; a context manager.

    Args:
      console: where lines go.
      stage: name of the stage.
      steps: its number of steps.
    """

    def __init__(self, console: Console, stage: str, steps: int):
        self._console, self._stage, self._steps = console, stage, steps
        self._shown: dict[str, Any] = {}
        self._start: tuple[float, int] | None = None  # time and number of the first step shown
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> StageProgress:
        if is_watched(self._console) and jax.process_count() == 1:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, markup=False, highlight=False)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the metrics of a step, on a terminal only."""
        self._show(step, metrics)

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the means of several steps, which stay on the live line until the next report."""
        line = self._show(step, metrics)
        if step == self._steps or not self._live.is_started:
            self._console.print(line, markup=False, highlight=False)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> str:
        self._shown |= metrics
        line = self._line(step, self._shown)
        self._live.update(Text(line))
        return line

    def _line(self, step: int, metrics: Mapping[str, Any]) -> str:
        words = [f"{self._stage} {step}/{self._steps}"]
        words += [f"{name} {metrics[name]:.4f}" for name in TERMS if name in metrics]
        for name, text in FORMATS.items():
            if name in metrics and (metrics[name] or name != "bad_steps"):
                words.append(text.format(metrics[name]))
        if self._start is None:  # not before the first step, so that compilation does not count
            self._start = time.monotonic(), step
        began, first = self._start
        if step > first:
            left = (time.monotonic() - began) / (step - first) * (self._steps - step)
            words.append(f"ETA {clock_face(left)}")
        return "  ".join(words)
