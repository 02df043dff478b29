"""95 % intervals of a benchmark's numbers, by a bootstrap over media."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from elva_jax.evaluation.benchmarks.base import Evaluation, Grade, Metric, Scores, could_be_asked
from elva_jax.evaluation.results import resampling
from elva_jax.evaluation.results.resampling import MakeTally, Name, Score

TAILS = (0.025, 0.975)
FEWEST = 5  # media; an interval of fewer says nothing


def with_intervals(
    evaluation: Evaluation,
    score: Score,
    *,
    tally: MakeTally | None = None,
    resamples: int = resampling.RESAMPLES,
) -> Evaluation:
    """The same evaluation with `low` and `high` of every number.

    Questions about one medium are drawn together, since their answers are not independent. The
    resamples depend only on the number of media. A number of fewer than `FEWEST` media has none.

    Args:
      evaluation: the evaluation.
      score: the benchmark's score function.
      tally: its numbers from sums, where it has them.
      resamples: number of resamples.
    """
    scores = {}
    for way, of_way in evaluation.scores.items():
        grades = could_be_asked(evaluation.grades.get(way, ()))
        if not grades:
            scores[way] = of_way
            continue
        media = resampling.number_media(grades)
        found = resampling.replicate(grades, score, media, tally=tally, resamples=resamples)
        bounds = {name: interval(values) for name, values in found.items()}
        for name in found:
            if count_media(grades, media, name) < FEWEST:
                bounds[name] = (float("nan"), float("nan"))
        scores[way] = _bounded(of_way, bounds)
    return dataclasses.replace(evaluation, scores=scores)


def count_media(grades: Sequence[Grade], media: np.ndarray, name: Name) -> int:
    """The number of media that a number is about: all, or those with questions of its category.

    Args:
      grades: all grades.
      media: int [N], number of each grade's media.
      name: of the number.
    """
    axis, value, _ = name
    if not axis:
        return len(np.unique(media))
    categories = (grade.response.question.categories for grade in grades)
    own = [number for number, of in zip(media, categories, strict=True) if of.get(axis) == value]
    return len(set(own))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bounds between which 95 % of the values lie; NaN where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, TAILS)
    return float(low), float(high)


def _bounded(scores: Scores, bounds: Mapping[Name, tuple[float, float]]) -> Scores:
    def bounded(axis: str, value: str, metric: Metric) -> Metric:
        low, high = bounds.get((axis, value, metric.name), (metric.low, metric.high))
        return dataclasses.replace(metric, low=low, high=high)

    return dataclasses.replace(
        scores,
        main=bounded("", "", scores.main),
        others=tuple(bounded("", "", metric) for metric in scores.others),
        categories={
            axis: {value: bounded(axis, value, metric) for value, metric in values.items()}
            for axis, values in scores.categories.items()
        },
    )
