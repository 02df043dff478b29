"""The figures of one run beside those of a study: is the run one of them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from elva_jax.errors import DataError
from elva_jax.evaluation.columns import Column, fit, printable
from elva_jax.tools.study.report import NAMES, columns
from elva_jax.tools.study.statistics import MACRO
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json

WIDER = 2.0  # standard errors by which a run may leave the range of a study's seeds
REMEDY = "give a file that elva evaluate --json wrote"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An accuracy of a run in percent, and the study's.

    Attributes:
      name: its column and family.
      value: the run's.
      error: its standard error.
      low: least of the study's seeds.
      high: most of them.
    """

    name: str
    value: float
    error: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether it lies in the range of the seeds, widened by two standard errors of its own."""
        wider = WIDER * self.error
        return self.low - wider <= self.value <= self.high + wider


def compare(summary: Mapping[str, Any], path: Path) -> list[Figure]:
    """A run's accuracies beside those of the baseline of a study, by column and family.

    Args:
      summary: of a study, from `load_summary`.
      path: a file of `elva evaluate --json`.

    Raises:
      DataError: `path` is no such file, is of other data, or misses a family of the study.
    """
    result = read_json(path, remedy=REMEDY)
    variant = summary["variants"].get(summary["baseline"])
    if variant is None:
        raise DataError(
            f"study {shown(summary['name'])}: has no finished run of {shown(summary['baseline'])};"
            " continue it, and store its summary again"
        )
    _check_data(summary["data"], result, path)
    figures = []
    for column in columns(summary):
        for family, estimate in variant["accuracy"][column].items():
            value, error = _own(result, family, column, path)
            seeds = estimate["by_seed"].values()
            name = f"{NAMES[column]}, {family}"
            figures.append(
                Figure(name=name, value=value, error=error, low=min(seeds), high=max(seeds))
            )
    return figures


def print_figures(
    figures: Sequence[Figure], seeds: int, console: Console | None = None
) -> list[str]:
    """Prints the figures in a table and a last line; returns the names of those outside.

    Args:
      figures: from `compare`.
      seeds: number of the study's.
      console: where to; None: standard output.
    """
    console = console or Console()
    outside = [figure.name for figure in figures if not figure.inside]
    ranges = [f"{figure.low:.1f} to {figure.high:.1f}" for figure in figures]
    marks = ["" if figure.inside else "outside" for figure in figures]
    first = Column(title="percent", cells=[figure.name for figure in figures], left=True)
    rest = [
        Column(title="this run", cells=[f"{figure.value:.1f}" for figure in figures]),
        Column(title="± 1 s.e.", cells=[f"{figure.error:.1f}" for figure in figures]),
        Column(title=f"range of {seeds} seeds", cells=ranges),
        *([Column(title="", cells=marks, left=True)] if outside else []),
    ]
    for table in fit([first], rest, console.width):
        console.print(table)
    where = f"the range of the study's {seeds} seeds, widened by {WIDER:g} standard errors"
    if outside:
        line = f"{len(outside)} of {len(figures)} figures are outside {where}: {'; '.join(outside)}"
        line += " (other data, machine, version or settings, or a fault)"
    else:
        line = f"all {len(figures)} figures are inside {where}"
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return outside


def _check_data(theirs: str, result: Mapping[str, Any], path: Path) -> None:
    """Refuses results of another data set or split, whose families may have the same names."""
    data = result.get("data")
    if not isinstance(data, dict):
        raise DataError(f"{repr_path(path)}: does not say of which data it is; {REMEDY}")
    ours = f"{data.get('name')}, {data.get('split')}"
    if ours != theirs:
        raise DataError(
            f"{repr_path(path)}: is of {shown(ours)}, the study of {shown(theirs)}; evaluate the"
            " run on that"
        )


def _own(result: Any, family: str, column: str, path: Path) -> tuple[float, float]:
    """A run's accuracy and its standard error, in percent."""
    try:
        scores = result["macro"] if family == MACRO else result["families"][family]
        score = scores[column]
        return 100 * float(score["accuracy"]), 100 * float(score["stderr"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{repr_path(path)}: has no accuracy of '{shown(family)}' ({NAMES[column]}); {REMEDY}"
        ) from None
