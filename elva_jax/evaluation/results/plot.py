"""Scores with their intervals as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks.base import Evaluation, Metric
from elva_jax.evaluation.results import settings
from elva_jax.utils.failures import repr_path
from elva_jax.utils.read import check_output, open_output

CAPTION = (
    *("model", "checkpoint", "step", "weights_hash", "prompts_hash", "dtype", "frames", "merging"),
    *("versions.elva_jax", "versions.jax"),
)
COLUMNS = 110  # characters of a line of the caption


def save(evaluations: Sequence[Evaluation], path: str | Path, option: str = "--figure") -> Path:
    """Draws each benchmark's main number, in percent of its largest value, and returns the path.

    Bars are the ways of answering; lines on them are the 95 % intervals.

    Args:
      evaluations: one per benchmark.
      path: the file, a .png, .svg or .pdf; folders above it are made.
      option: its name in messages.

    Raises:
      ConfigError: the file cannot be written.
    """
    # matplotlib is an extra.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    path = check_output(path, option)
    ways = list(dict.fromkeys(way for evaluation in evaluations for way in evaluation.scores))
    fig = Figure(figsize=(max(7.0, 1.3 * len(evaluations)), 4.6), layout="constrained")
    FigureCanvasAgg(fig)
    if path.suffix[1:].lower() not in fig.canvas.get_supported_filetypes():
        raise ConfigError(f"{option} {repr_path(path)}: is no picture; name a .png, .svg or .pdf")
    axes = fig.subplots()
    width = 0.8 / max(len(ways), 1)
    for number, way in enumerate(ways):
        found = [(i, e.scores[way].main) for i, e in enumerate(evaluations) if way in e.scores]
        left = [i + (number - (len(ways) - 1) / 2) * width for i, _ in found]
        heights = [_percent(metric, metric.value) for _, metric in found]
        errors = [_error(metric) for _, metric in found]
        axes.bar(
            left, heights, width, yerr=list(zip(*errors, strict=True)), label=_plain(way),
            error_kw={"lw": 0.8, "capsize": 2},
        )  # fmt: skip
    titles = [_plain(f"{e.title}\n{_largest(e)}") for e in evaluations]
    axes.set_xticks(range(len(evaluations)), titles, fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("percent of the largest value")
    axes.legend(
        ncols=len(ways), fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    fig.supxlabel(_plain(_caption(evaluations)), fontsize=7)
    with open_output(path, option, "wb") as file:
        fig.savefig(file, dpi=150, format=path.suffix[1:].lower())
    return path


def _percent(metric: Metric, value: float) -> float:
    return 100 * value / metric.maximum if math.isfinite(value) else 0.0


def _error(metric: Metric) -> tuple[float, float]:
    """Lengths of the line below and above a bar."""
    if not (math.isfinite(metric.low) and math.isfinite(metric.high)):
        return 0.0, 0.0
    value = _percent(metric, metric.value)
    low, high = _percent(metric, metric.low), _percent(metric, metric.high)
    return max(0.0, value - low), max(0.0, high - value)


def _largest(evaluation: Evaluation) -> str:
    """The main number's name, and its largest value where that is not 100."""
    main = next(iter(evaluation.scores.values())).main
    return main.name if main.maximum == 100 else f"{main.name} of {main.maximum:g}"


def _caption(evaluations: Sequence[Evaluation]) -> str:
    shared = settings.common(evaluations)
    parts = [("", shared)]
    parts += [(f"{e.title}: ", settings.own(e, shared)) for e in evaluations]
    lines = []
    for title, values in parts:
        if known := [f"{name} {values[name]}" for name in CAPTION if name in values]:
            lines += textwrap.wrap(title + " · ".join(known), COLUMNS)
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text in which a dollar sign begins no formula, and of characters that can be drawn."""
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return text.replace("$", r"\$")
