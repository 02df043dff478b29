"""The figures of one run beside those of a study: is the run one of them?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.errors import DataError
from elva_jax.tools.study.report import NAMES, columns
from elva_jax.tools.study.statistics import MACRO
from elva_jax.utils.read import read_json

WIDER = 2.0  # standard errors by which a run may leave the range of a study's seeds


def beside(summary: Mapping[str, Any], path: Path) -> tuple[str, list[str]]:
    """A table of a run's accuracies in percent, and the names of those that are not as expected.

    Expected is the range of the baseline's seeds, widened by two standard errors of the run's own
    figure.

    Args:
      summary: of a study.
      path: what `elva evaluate --json` wrote.

    Raises:
      DataError: `path` is no such file, or misses a family of the study.
    """
    result, outside = read_json(path), []
    variant = summary["variants"].get(summary["baseline"])
    if variant is None:
        raise DataError(f"study {summary['name']}: has no finished run of {summary['baseline']}")
    lines = [f"{'':24}{'this run':>10}   {len(variant['seeds'])} seeds of the study"]
    for column in columns(summary):
        for family, estimate in variant["accuracy"][column].items():
            value, error = _own(result, family, column, path)
            seeds = list(estimate["by_seed"].values())
            low, high = min(seeds), max(seeds)
            name = f"{NAMES[column]}, {family}"
            inside = low - WIDER * error <= value <= high + WIDER * error
            if not inside:
                outside.append(name)
            mark = "" if inside else "   <- not as expected"
            lines.append(f"{name:24}{value:10.1f}   {low:.1f} to {high:.1f}{mark}")
    return "\n".join(lines), outside


def _own(result: Any, family: str, column: str, path: Path) -> tuple[float, float]:
    """A run's accuracy and its standard error, in percent."""
    try:
        scores = result["macro"] if family == MACRO else result["families"][family]
        score = scores[column]
        return 100 * float(score["accuracy"]), 100 * float(score["stderr"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: has no accuracy of '{family}' ({NAMES[column]}); give a file that"
            " `elva evaluate --json` wrote"
        ) from None
