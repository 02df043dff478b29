"""Scores by category as CSV, a row per number."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from elva_jax.evaluation.benchmarks.base import Evaluation, Metric
from elva_jax.evaluation.results import settings
from elva_jax.utils.read import check_output, open_output

HEAD = ("benchmark", "answer", "axis", "category", "number", "score", "low", "high", "maximum")
# With these a spreadsheet's formula begins; the last four are the full-width forms of the first.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def save(evaluations: Sequence[Evaluation], path: str | Path, option: str = "--csv") -> Path:
    """Writes the main number, the others and those by category, and returns the path.

    Each row ends with every setting. A text that a spreadsheet would take for a formula has an
    apostrophe before it.

    Args:
      evaluations: one per benchmark.
      path: the file; folders above it are made.
      option: its name in messages.

    Raises:
      ConfigError: the file cannot be written.
    """
    path = check_output(path, option)
    described = [settings.flat(evaluation.settings) for evaluation in evaluations]
    names = list(dict.fromkeys(name for values in described for name in values))
    with open_output(path, option) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*HEAD, "count", *map(_text, names)])
        for evaluation, values in zip(evaluations, described, strict=True):
            last = [_text(values.get(name, "")) for name in names]
            writer.writerows([*row, *last] for row in _rows(evaluation))
    return path


def _rows(evaluation: Evaluation) -> Iterable[list[str | float | int]]:
    for way, scores in evaluation.scores.items():
        for metric in (scores.main, *scores.others):
            yield _row(evaluation, way, ("", ""), metric)
        for axis, values in scores.categories.items():
            for value, metric in values.items():
                yield _row(evaluation, way, (axis, value), metric)


def _row(
    evaluation: Evaluation, way: str, category: tuple[str, str], metric: Metric
) -> list[str | float | int]:
    texts = (evaluation.benchmark, way, *category, metric.name)
    numbers = (metric.value, metric.low, metric.high, metric.maximum)
    known = [value if math.isfinite(value) else "" for value in numbers]
    return [*map(_text, texts), *known, metric.count]


def _text(value: str) -> str:
    value = value.encode("utf-8", "replace").decode()  # unpaired surrogates
    return f"'{value}" if value.startswith(FORMULA) else value
