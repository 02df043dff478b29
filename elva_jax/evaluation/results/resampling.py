"""A benchmark's numbers on resamples of its media, drawn with replacement.

    media      v1 v2 v3 …            a question belongs to the medium that it is about
    resample   v3 v1 v3 …            all questions of a drawn medium are drawn together
    weights    [1, 0, 2, …]          how often each medium was drawn

Most numbers are means over questions or over those with a flag, or means of such means over
categories; those of all resamples are one product of matrices. Every other number is computed by
the benchmark's own score function on each resample. Which numbers are means is found out: on the
whole set and on the first `PROBES` resamples the mean must be equal to what the score function
says. A number that is the same on all of these is taken for a constant.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elva_jax.evaluation.benchmarks.base import Grade, Metric, Question, Scores

RESAMPLES, SEED, PROBES = 2000, 0, 16
MOST_GRADES = 4_000_000  # that score functions see for one benchmark and way of answering
FEWEST = 200  # resamples where they see more
CHUNK = 100  # resamples whose weights are in memory
Score = Callable[[Sequence[Grade]], Scores]
Name = tuple[str, str, str]  # axis, category and number; the first two are "" for the whole
NOT_COUNTED = ({"no_reference"}, {"no_reference", "unjudged"})


def metrics_of(scores: Scores) -> dict[Name, Metric]:
    """All numbers by name, the main one first."""
    found: dict[Name, Metric] = {("", "", scores.main.name): scores.main}
    for metric in scores.others:
        found.setdefault(("", "", metric.name), metric)
    for axis, values in scores.categories.items():
        found |= {(axis, value, metric.name): metric for value, metric in values.items()}
    return found


def media_of(question: Question) -> object:
    """What questions share that are drawn together: the media, whichever excerpt is meant."""
    return tuple(medium.source for medium in question.media) or question.key


def number_media(grades: Sequence[Grade]) -> np.ndarray:
    """For each grade the number of its media, int [N] from 0 in order of appearance."""
    numbers: dict[object, int] = {}
    return np.array(
        [numbers.setdefault(media_of(g.response.question), len(numbers)) for g in grades], int
    )


def replicate(
    grades: Sequence[Grade],
    score: Score,
    media: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    means: bool = True,
) -> dict[Name, np.ndarray]:
    """Every number of a benchmark on each resample.

    Args:
      grades: all grades, not empty.
      score: the benchmark's score function.
      media: int [N], number of each grade's media; None: `number_media`.
      resamples: number of resamples of means; other numbers may have fewer of them, the first.
      means: whether means may be computed as such; False: everything by the score function.

    Returns:
      By name float [resamples], NaN where a category was not drawn. The same media give the same
      resamples, so that the numbers of two models can be subtracted.
    """
    media = number_media(grades) if media is None else media
    whole = metrics_of(score(grades))
    drawn = _Drawn(grades, media)
    probes = list(itertools.islice(_weights(media, resamples), PROBES))
    seen = [metrics_of(score(drawn.grades(weights))) for weights in probes]
    found = _means(grades, media, whole, np.stack(probes), seen) if means else {}
    unknown = {name for name, metric in whole.items() if np.isnan(metric.value)}
    rest = [name for name in whole if name not in found and name not in unknown]
    fewer = min(resamples, max(FEWEST, MOST_GRADES // len(grades))) if means else resamples
    values: dict[Name, list[np.ndarray]] = {name: [] for name in whole}
    for number, weights in enumerate(_weights(media, resamples)):
        if rest and number < fewer:
            metrics = metrics_of(score(drawn.grades(weights)))
            for name in rest:
                values[name].append(np.atleast_1d(_value(metrics, name)))
    for chunk in _chunks(media, resamples):
        for name, mean in found.items():
            values[name].append(mean(chunk))
    nothing = np.full(resamples, np.nan)
    return {
        name: nothing if name in unknown else np.concatenate(parts)
        for name, parts in values.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Mean:
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


def _means(
    grades: Sequence[Grade],
    media: np.ndarray,
    whole: Mapping[Name, Metric],
    probes: np.ndarray,
    seen: Sequence[Mapping[Name, Metric]],
) -> dict[Name, _Mean]:
    """The numbers that are means or constant, on the whole set and on the probes."""
    every = np.ones((1, probes.shape[1]))
    weights = np.concatenate([every, probes])
    found: dict[Name, _Mean] = {}
    for name, metric in whole.items():
        if np.isnan(metric.value):
            continue
        wanted = [metric.value, *(_value(metrics, name) for metrics in seen)]
        for mean in _candidates(grades, media, name, metric.maximum):
            if np.allclose(mean(weights), wanted, rtol=1e-9, atol=1e-9, equal_nan=True):
                found[name] = mean
                break
        else:
            if len(set(wanted)) == 1:  # such as the number of tasks that were asked
                found[name] = _Mean(factor=metric.value, sums=every, counts=every)
    return found


def _candidates(
    grades: Sequence[Grade], media: np.ndarray, name: Name, maximum: float
) -> Iterator[_Mean]:
    """Means that a number of this name may be."""
    axis, value, _ = name
    axes = dict.fromkeys(a for g in grades for a in g.response.question.categories)
    all_of = np.zeros(len(grades), int)
    sets = [_numbers(grades, axis, value)] if axis else [all_of]
    if not axis:
        sets += [_numbers(grades, other) for other in axes]
        flags = dict.fromkeys(key for grade in grades for key in grade.response.question.extra)
        sets += [_flagged(grades, key) for key in flags]
    kinds = dict.fromkeys(detail for grade in grades for detail in grade.details)
    for chosen, excluded in itertools.product(sets, NOT_COUNTED):
        counted = np.array([g.status not in excluded for g in grades]) & (chosen >= 0)
        if not counted.any():
            continue
        for kind in ("", *kinds):
            values = np.array([g.details.get(kind, np.nan) if kind else g.credit for g in grades])
            if np.isnan(values[counted]).any():
                continue
            shape = int(chosen.max()) + 1, int(media.max()) + 1
            sums, counts = np.zeros(shape), np.zeros(shape)
            np.add.at(sums, (chosen[counted], media[counted]), values[counted])
            np.add.at(counts, (chosen[counted], media[counted]), 1.0)
            for factor in dict.fromkeys((maximum, 1.0)):
                yield _Mean(factor=factor, sums=sums, counts=counts)


def _numbers(grades: Sequence[Grade], axis: str, value: str | None = None) -> np.ndarray:
    """For each grade the number of its category on an axis, or -1; of one value alone if given."""
    numbers = {} if value is None else {value: 0}
    found = []
    for grade in grades:
        own = grade.response.question.categories.get(axis)
        if own is not None and value is None:
            numbers.setdefault(own, len(numbers))
        found.append(-1 if own is None else numbers.get(own, -1))
    return np.array(found, int)


def _flagged(grades: Sequence[Grade], key: str) -> np.ndarray:
    """For each grade 0 if its question has a flag among its extras, else -1."""
    return np.array([0 if g.response.question.extra.get(key) is True else -1 for g in grades], int)


class _Drawn:
    """The grades of resamples; second copies of a question have names of their own."""

    def __init__(self, grades: Sequence[Grade], media: np.ndarray) -> None:
        self._of_media: list[list[Grade]] = [[] for _ in range(int(media.max()) + 1)]
        for grade, number in zip(grades, media, strict=True):
            self._of_media[number].append(grade)
        self._copies: dict[tuple[int, int], list[Grade]] = {}

    def grades(self, weights: np.ndarray) -> list[Grade]:
        """The grades of one resample."""
        return [
            grade
            for number in np.flatnonzero(weights)
            for copy in range(int(weights[number]))
            for grade in self._copy(int(number), copy)
        ]

    def _copy(self, number: int, copy: int) -> list[Grade]:
        if not copy:
            return self._of_media[number]
        if (number, copy) not in self._copies:
            self._copies[number, copy] = [_renamed(g, copy) for g in self._of_media[number]]
        return self._copies[number, copy]


def _renamed(grade: Grade, copy: int) -> Grade:
    question = grade.response.question
    extra = dict(question.extra)
    if "group" in extra:
        extra["group"] = f"{extra['group']}#{copy}"
    question = dataclasses.replace(question, key=f"{question.key}#{copy}", extra=extra)
    return dataclasses.replace(
        grade, response=dataclasses.replace(grade.response, question=question)
    )


def _chunks(media: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """How often each medium is drawn, [R, media] for at most `CHUNK` resamples at once."""
    number, rng = int(media.max()) + 1, np.random.default_rng(SEED)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        yield rng.multinomial(number, np.full(number, 1 / number), size).astype(np.float64)


def _weights(media: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    for chunk in _chunks(media, resamples):
        yield from chunk


def _value(metrics: Mapping[Name, Metric], name: Name) -> float:
    return metrics[name].value if name in metrics else float("nan")
