"""Comparisons of two models in the terminal: differing settings first, whole at any width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from elva_jax.evaluation.columns import Column, fit, format_value, printable, scale
from elva_jax.evaluation.results.paired import Comparison, Difference
from elva_jax.evaluation.results.table import number

NAMED = 5  # keys of questions that one side lacks
NOTES = (
    "95 %: of B - A, by a bootstrap over the media of both"
    " · only A/B: questions that one of them alone has right"
    " · p: McNemar's exact test on right against not right, questions counted as independent"
)


def print_comparisons(
    comparisons: Sequence[Comparison], names: tuple[str, str], console: Console | None = None
) -> None:
    """Prints the settings that differ, then a table per benchmark and way of answering.

    Args:
      comparisons: what `paired.compare` found.
      names: of the two files, A and B.
      console: where to; None: standard output.
    """
    console = console or Console()
    parts: list[RenderableType] = [_text(f"A: {names[0]}"), _text(f"B: {names[1]}")]
    printed: object = None
    for comparison in comparisons:
        if comparison.settings != printed:
            parts += _settings(comparison, console.width)
            printed = comparison.settings
        parts += _numbers(comparison, console.width)
    console.print(Group(*parts, Text(NOTES, style="table.caption")))


def _settings(comparison: Comparison, width: int) -> Iterable[RenderableType]:
    """The settings that differ, a row each."""
    if not comparison.settings:
        yield _text(f"\n{comparison.title}: all settings are the same")
        return
    yield _text(f"\n{comparison.title}: settings that differ")
    for name, first, second in comparison.settings:
        yield _text(f"  {name}: A {first or 'not known'}, B {second or 'not known'}")


def _numbers(comparison: Comparison, width: int) -> Iterable[RenderableType]:
    """The differences, and the questions that are not compared."""
    yield _text(f"\n{comparison.title}, {comparison.way}: {comparison.common} questions of both")
    for keys, why in (
        (comparison.only_a, "in A alone"),
        (comparison.only_b, "in B alone"),
        (comparison.changed, "with another text, options, answer or media in B"),
        (comparison.unreadable, "whose media A or B could not read"),
    ):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            yield _text(f"  {len(keys)} left out, {why}: {', '.join(keys[:NAMED])}{more}")
    for name, in_a, in_b, here in comparison.converted:
        yield _text(
            f"  {name}: of {in_a:g} in A, of {in_b:g} in B; both are shown of {scale(here)}"
        )
    for axis in dict.fromkeys(row.axis for row in comparison.differences):
        rows = [row for row in comparison.differences if row.axis == axis]
        if axis and len(rows) < 2:
            continue
        first = Column(title=axis, cells=[row.category or row.number for row in rows], left=True)
        rest = [
            Column(title="n", cells=[str(row.a.count) for row in rows]),
            Column(title="A", cells=[number(row.a) for row in rows]),
            Column(title="B", cells=[number(row.b) for row in rows]),
            Column(title="of", cells=[scale(row.a.maximum) for row in rows]),
            Column(title="B-A", cells=[_signed(r, r.difference) for r in rows], style="bold"),
            Column(title="95 %", cells=[_bounds(row) for row in rows]),
            Column(title="only A/B", cells=[f"{row.only_a}/{row.only_b}" for row in rows]),
            Column(title="p", cells=[_p(row.p) for row in rows]),
        ]
        yield from fit([first], rest, width)


def _signed(row: Difference, value: float) -> str:
    shown = format_value(abs(value), row.a.maximum)
    if not math.isfinite(value):
        return shown
    return ("+" if value > 0 else "-" if value < 0 else "") + shown


def _bounds(row: Difference) -> str:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return "–"
    return f"{_signed(row, row.low)}…{_signed(row, row.high)}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _text(line: str) -> Text:
    lead = line[: len(line) - len(line.lstrip())]
    return Text(lead + printable(line))
