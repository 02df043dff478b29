"""The scores of a run in the terminal, whole at any width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from elva_jax.evaluation.benchmarks.base import Evaluation, Metric, Scores
from elva_jax.evaluation.columns import Column, fit, format_value, printable, scale
from elva_jax.evaluation.results import settings
from elva_jax.evaluation.results.intervals import FEWEST

# Statuses that are counted beside the scores, and their heads.
COUNTED = {
    "unparsed": "unparsed",
    "unreadable": "unreadable",
    "too_long": "too long",
    "unjudged": "unjudged",
    "no_reference": "no reference",
}
WAYS = {
    "generated": "written answer",
    "likelihood": "likeliest option text",
    "likelihood_char": "likeliest option text, per character",
    "likelihood_token": "likeliest option text, per token",
    "letter": "likeliest letter",
}


def print_scores(
    evaluations: Sequence[Evaluation], console: Console | None = None, *, categories: bool = True
) -> None:
    """Prints scores, intervals, unusable answers, scores by category, and the settings.

    Args:
      evaluations: one per benchmark.
      console: where to; None: standard output.
      categories: whether to print scores by category.
    """
    console = console or Console()
    parts: list[RenderableType] = [*_overview(evaluations, console.width)]
    if categories:
        for evaluation in evaluations:
            parts += _by_category(evaluation, console.width)
    notes = Text("\n".join(map(printable, _notes(evaluations))), style="table.caption")
    console.print(Group(*parts, notes))


def number(metric: Metric) -> str:
    """`60.0` of 100 or of 1, `3.52` of 5, `1520.4`; a dash where nothing was asked."""
    return format_value(metric.value, metric.maximum)


def interval(metric: Metric) -> str:
    """`54.1–65.9`; a dash where there is none."""
    if not (math.isfinite(metric.low) and math.isfinite(metric.high)):
        return "–"
    return f"{format_value(metric.low, metric.maximum)}–{format_value(metric.high, metric.maximum)}"


def metric_rows(evaluation: Evaluation, way: str) -> list[tuple[str, Metric]]:
    """The main number and the others of one way of answering, with their names."""
    scores = evaluation.scores[way]
    return [(metric.name, metric) for metric in (scores.main, *scores.others)]


def _overview(evaluations: Sequence[Evaluation], width: int) -> Iterable[RenderableType]:
    """A row per benchmark, way of answering and number."""
    rows: list[tuple[str, str, str, Metric, Scores]] = []
    ends = []
    for evaluation in evaluations:
        for way, scores in evaluation.scores.items():
            for name, metric in metric_rows(evaluation, way):
                rows.append((evaluation.title, way, name, metric, scores))
        ends.append(len(rows) - 1)
    names = {row[2] for row in rows}
    first = [
        Column(title="benchmark", cells=[row[0] for row in rows], left=True),
        Column(title="answer", cells=[row[1] for row in rows], left=True),
    ]
    if len(names) > 1:
        first.append(Column(title="number", cells=[row[2] for row in rows], left=True))
    title = "score" if len(names) > 1 else next(iter(names), "score")
    rest = [
        Column(title=title, cells=[number(row[3]) for row in rows], style="bold"),
        Column(title="of", cells=[scale(row[3].maximum) for row in rows]),
        Column(title="95 %", cells=[interval(row[3]) for row in rows]),
        Column(title="n", cells=[str(row[3].count) for row in rows]),
    ]
    for status, head in COUNTED.items():
        counts = [row[4].statuses.get(status, 0) for row in rows]
        if any(counts) or status == "unparsed":
            rest.append(Column(title=head, cells=[str(count) for count in counts]))
    return fit(first, rest, width, sections=ends)


def _by_category(evaluation: Evaluation, width: int) -> Iterable[RenderableType]:
    """A table per axis, with a column per way of answering."""
    for axis in dict.fromkeys(a for s in evaluation.scores.values() for a in s.categories):
        found = {way: s.categories.get(axis, {}) for way, s in evaluation.scores.items()}
        values = list(dict.fromkeys(v for of in found.values() for v in of))
        if len(values) < 2:
            continue
        first = [
            Column(title=axis, cells=values, left=True),
            Column(title="n", cells=[_count(found, value) for value in values]),
        ]
        rest = [
            Column(title=way, cells=[_cell(of.get(value)) for value in values])
            for way, of in found.items()
        ]
        tables = fit(first, rest, width)
        largest = {scale(metric.maximum) for of in found.values() for metric in of.values()}
        title = f"{evaluation.title} by {axis}, of {' or '.join(sorted(largest))}"
        tables[0].title = Text(printable(title))
        yield from tables


def _cell(metric: Metric | None) -> str:
    """`60.0 [54.1–65.9]`, or without an interval."""
    if metric is None:
        return "–"
    bounds = interval(metric)
    return number(metric) + ("" if bounds == "–" else f" [{bounds}]")


def _count(found: Mapping[str, Mapping[str, Metric]], value: str) -> str:
    return str(next((of[value].count for of in found.values() if value in of), 0))


def _notes(evaluations: Sequence[Evaluation]) -> Iterable[str]:
    """The meaning of the columns, and the settings: those of all benchmarks, then the rest."""
    ways = dict.fromkeys(way for evaluation in evaluations for way in evaluation.scores)
    yield " · ".join(f"{way}: {WAYS[way]}" for way in ways if way in WAYS)
    yield "of: the largest possible score; JSON and CSV have shares of 1 as they are (maximum)"
    yield (
        f"95 % and [ ]: bootstrap over media, of {FEWEST} or more; unparsed answers count in n,"
        " unreadable media are in no score"
    )
    shared = settings.common(evaluations)
    yield from _lines("settings", shared)
    for evaluation in evaluations:
        yield from _lines(evaluation.title, settings.own(evaluation, shared))


def _lines(title: str, values: Mapping[str, str]) -> Iterable[str]:
    if values:
        yield f"{title}: " + " · ".join(f"{name} {value}" for name, value in values.items())
