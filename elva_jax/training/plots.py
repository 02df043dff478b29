"""Draws loss terms and accuracies of every stage over its steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elva_jax.config.schema import Config
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.metrics import TERMS
from elva_jax.utils.files import open_atomic

MISSING = 'curves.png is not drawn: needs matplotlib; pip install "elva_jax[plots]"'
ACCURACIES = ("accuracy", "frame_accuracy", "match_accuracy", "eval/exact", "eval/choice")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(workdir: Path, config: Config) -> Path | None:
    """Draws workdir/curves.png: losses above, accuracies below, one column for each stage.

    Returns:
      the file, or None if nothing has been reported yet or matplotlib is not installed.
    """
    if not can_draw():
        return None
    from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)

    reports = {name: read_metrics(workdir / name) for name in config.curriculum}
    stages = {name: lines for name, lines in reports.items() if lines}
    if not stages:
        return None
    figure = Figure(figsize=(4 * len(stages), 6))
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for (losses, accuracies), (name, lines) in zip(axes.T, stages.items(), strict=True):
        losses.set_title(name)
        accuracies.set_xlabel("step")
        accuracies.set_ylim(0, 1)
        terms = [term for term in TERMS[1:] if any(term in line for line in lines)]
        # A single term is the loss.
        shown = ["loss", *terms] if len(terms) > 1 else terms
        _plot(losses, lines, [*shown, "eval/loss"])
        _plot(accuracies, lines, ACCURACIES)
        if all(value > 0 for line in losses.get_lines() for value in line.get_ydata()):
            losses.set_yscale("log")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy")
    figure.suptitle(config.name)
    path = workdir / "curves.png"
    with open_atomic(path, "wb") as file:
        figure.savefig(file, dpi=120)
    return path


def _plot(axis: Any, reports: list[dict[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        finite = [report for report in reports if report.get(name) is not None]
        if finite:
            steps = [report["step"] for report in finite]
            axis.plot(steps, [report[name] for report in finite], label=name, linewidth=1)
    if axis.get_lines():
        axis.legend(fontsize="small")
