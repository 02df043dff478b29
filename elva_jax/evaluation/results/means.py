"""Numbers of a benchmark that are means, found by trying.

A number may be a mean over all questions, over those of a category, or over those with a flag; a
mean over the categories of an axis of the means in each; a mean of credits, of groups' smallest
credits, or of another measured value. A candidate is taken if it equals what the benchmark's score
function says on the whole set and on some resamples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elva_jax.evaluation.benchmarks.base import Grade, Metric

Name = tuple[str, str, str]  # axis, category and number; the first two are "" for the whole
NOT_COUNTED = (["no_reference"], ["no_reference", "unjudged"])


@dataclass(frozen=True, kw_only=True)
class Mean:
    """`factor` times the mean, over sets of questions that were drawn, of the mean in each.

    Attributes:
      factor: largest value of the number, or 1.
      sums: float [sets, media], sums of a question's value.
      counts: float [sets, media], numbers of questions.
    """

    factor: float
    sums: np.ndarray
    counts: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The number on each resample, float [R] of weights [R, media]."""
        sums, counts = weights @ self.sums.T, weights @ self.counts.T
        means = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
        sets = (counts > 0).sum(1)
        return np.where(sets > 0, self.factor * means.sum(1) / np.maximum(sets, 1), np.nan)


class Columns:
    """The grades of a benchmark as arrays.

    Args:
      grades: all grades.
      media: int [N], number of each grade's media.
    """

    def __init__(self, grades: Sequence[Grade], media: np.ndarray) -> None:
        questions = [grade.response.question for grade in grades]
        self.media = media
        self.shown = int(media.max()) + 1
        self.measured = list(_measured(grades))
        status = np.array([grade.status for grade in grades])
        counted = [~np.isin(status, names) for names in NOT_COUNTED]
        self.counted = counted[: 1 if (counted[0] == counted[1]).all() else 2]
        self.axes = {
            axis: np.array([question.categories.get(axis, "") for question in questions])
            for axis in dict.fromkeys(axis for q in questions for axis in q.categories)
        }
        self.flags = [
            np.where([question.extra.get(key) is True for question in questions], 0, -1)
            for key in dict.fromkeys(key for question in questions for key in question.extra)
        ]

    def candidates(self, name: Name, maximum: float) -> Iterator[Mean]:
        """Means that a number of this name may be."""
        for chosen, counted in itertools.product(self._sets(name), self.counted):
            for values, once in self.measured:
                own = counted & once & (chosen >= 0)
                if not own.any() or np.isnan(values[own]).any():
                    continue
                shape = int(chosen.max()) + 1, self.shown
                sums, counts = np.zeros(shape), np.zeros(shape)
                np.add.at(sums, (chosen[own], self.media[own]), values[own])
                np.add.at(counts, (chosen[own], self.media[own]), 1.0)
                for factor in dict.fromkeys((maximum, 1.0)):
                    yield Mean(factor=factor, sums=sums, counts=counts)

    def _sets(self, name: Name) -> Iterator[np.ndarray]:
        """For each grade the number of its set, or -1."""
        axis, value, _ = name
        if axis:
            if axis in self.axes:
                yield np.where(self.axes[axis] == value, 0, -1)
            return
        yield np.zeros(len(self.media), int)
        for values in self.axes.values():
            numbers = np.unique(values, return_inverse=True)[1]
            yield np.where(values == "", -1, numbers)
        yield from self.flags


def find_means(
    columns: Columns,
    whole: Mapping[Name, Metric],
    probes: np.ndarray,
    seen: Sequence[Mapping[Name, Metric]],
) -> dict[Name, Mean]:
    """The numbers that are means or constant.

    Args:
      columns: the grades.
      whole: the numbers on all grades.
      probes: float [R, media], how often each medium was drawn in some resamples.
      seen: the numbers on these.
    """
    every = np.ones((1, probes.shape[1]))
    weights = np.concatenate([every, probes])
    found: dict[Name, Mean] = {}
    for name, metric in whole.items():
        wanted = [metric.value, *(value_of(metrics, name) for metrics in seen)]
        if np.isnan(metric.value):
            continue
        for mean in columns.candidates(name, metric.maximum):
            if np.allclose(mean(weights), wanted, rtol=1e-9, atol=1e-9, equal_nan=True):
                found[name] = mean
                break
        else:
            if len(set(wanted)) == 1:  # such as the number of tasks that were asked
                found[name] = Mean(factor=metric.value, sums=every, counts=every)
    return found


def value_of(metrics: Mapping[Name, Metric], name: Name) -> float:
    """A number's value; NaN where it is missing."""
    return metrics[name].value if name in metrics else float("nan")


def _measured(grades: Sequence[Grade]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values whose mean a number may be, float [N], and which of them count, bool [N]."""
    credit, every = np.array([grade.credit for grade in grades]), np.ones(len(grades), bool)
    yield credit, every
    groups = [grade.response.question.extra.get("group") for grade in grades]
    if None not in groups:
        _, first, group = np.unique(np.array(groups), return_index=True, return_inverse=True)
        least = np.full(len(first), np.inf)
        np.minimum.at(least, group, credit)
        yield least[group], np.isin(np.arange(len(grades)), first)
    for kind in dict.fromkeys(detail for grade in grades for detail in grade.details):
        yield np.array([grade.details.get(kind, np.nan) for grade in grades]), every
