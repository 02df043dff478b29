"""The pictures at the end: loss terms and accuracies of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.metrics import TERMS

ACCURACIES = ("accuracy", "frame_accuracy", "match_accuracy")


def draw(workdir: Path, config: ConfigDict) -> Path | None:
    """Draws workdir/curves.png: one column a stage, losses above (logarithmic), accuracies below; None where nothing was reported."""
    stages = {name: lines for name in config.curriculum if (lines := read_metrics(workdir / name))}
    if not stages:
        return None
    figure = Figure(figsize=(4 * len(stages), 6), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for column, (name, lines) in zip(axes.T, stages.items(), strict=True):
        column[0].set_title(name)
        column[1].set_xlabel("step")
        column[1].set_ylim(0, 1)
        terms = [name for name in TERMS[1:] if name in lines[0]]
        _lines(
            column[0], lines, ("loss", *terms) if len(terms) > 1 else terms
        )  # a single term is the loss
        _lines(column[1], lines, ACCURACIES)
        if all(value > 0 for line in column[0].get_lines() for value in line.get_ydata()):
            column[0].set_yscale("log")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy")
    figure.suptitle(config.name)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _lines(axis, reports: list[dict], names: Sequence[str]) -> None:
    for name in names:
        points = [
            (report["step"], report[name]) for report in reports if report.get(name) is not None
        ]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
    if axis.get_lines():
        axis.legend(fontsize="small")
