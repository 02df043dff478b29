"""A benchmark's numbers on resamples of its media, drawn with replacement.

    media      v1 v2 v3 …            a question belongs to the medium that it is about
    resample   v3 v1 v3 …            all questions of a drawn medium are drawn together
    weights    [1, 0, 2, …]          how often each medium was drawn

Most numbers are means; those of all resamples are one product of matrices. So are those of a
benchmark with a `Tally`. Every other number is computed by the benchmark's own score function on
each resample. `means` finds out which is which, by the score function's numbers on the whole set
and on the first `PROBES` resamples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from elva_jax.evaluation.benchmarks.base import Grade, Metric, Scores, Tally, media_of
from elva_jax.evaluation.results.means import Columns, Name, find_means, value_of

RESAMPLES, SEED, PROBES = 2000, 0, 16
MOST_GRADES = 1_000_000  # that score functions see for one benchmark and way of answering
FEWEST = 200  # resamples where they see more
CHUNK = 100  # resamples whose weights are in memory
Score = Callable[[Sequence[Grade]], Scores]
MakeTally = Callable[[Sequence[Grade]], Tally | None]


def metrics_of(scores: Scores) -> dict[Name, Metric]:
    """All numbers by name, the main one first."""
    found: dict[Name, Metric] = {("", "", scores.main.name): scores.main}
    for metric in scores.others:
        found.setdefault(("", "", metric.name), metric)
    for axis, values in scores.categories.items():
        found |= {(axis, value, metric.name): metric for value, metric in values.items()}
    return found


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
    tally: MakeTally | None = None,
    resamples: int = RESAMPLES,
    means: bool = True,
) -> dict[Name, np.ndarray]:
    """Every number of a benchmark on each resample.

    Args:
      grades: all grades, not empty.
      score: the benchmark's score function.
      media: int [N], number of each grade's media; None: `number_media`.
      tally: the benchmark's numbers from sums, where it has them.
      resamples: number of resamples of means; other numbers may have fewer of them, the first.
      means: whether means may be computed as such; False: everything by the score function.

    Returns:
      By name float [resamples], NaN where a category was not drawn. The same media give the same
      resamples, so that the numbers of two models can be subtracted.
    """
    media = number_media(grades) if media is None else media
    whole = metrics_of(score(grades))
    unknown = {name for name, metric in whole.items() if np.isnan(metric.value)}
    if means and tally is not None and (summed := tally(grades)) is not None:
        return _of_sums(summed, media, resamples, whole.keys() - unknown, whole)
    drawn = _Drawn(grades, media)
    probes = list(itertools.islice(_weights(media, resamples), PROBES))
    seen = [metrics_of(score(drawn.grades(weights))) for weights in probes]
    found = find_means(Columns(grades, media), whole, np.stack(probes), seen) if means else {}
    rest = [name for name in whole if name not in found and name not in unknown]
    fewer = min(resamples, max(FEWEST, MOST_GRADES // len(grades))) if means else resamples
    values: dict[Name, list[np.ndarray]] = {name: [] for name in whole}
    for number, weights in enumerate(_weights(media, resamples)):
        if rest and number < fewer:
            metrics = metrics_of(score(drawn.grades(weights)))
            for name in rest:
                values[name].append(np.atleast_1d(value_of(metrics, name)))
    for chunk in _chunks(media, resamples):
        for name, mean in found.items():
            values[name].append(mean(chunk))
    nothing = np.full(resamples, np.nan)
    return {
        name: nothing if name in unknown else np.concatenate(parts)
        for name, parts in values.items()
    }


def _of_sums(
    tally: Tally, media: np.ndarray, resamples: int, known: Collection[Name], names: Iterable[Name]
) -> dict[Name, np.ndarray]:
    """Every number on each resample, whose sums are one product of matrices."""
    sums = np.zeros((int(media.max()) + 1, tally.values.shape[1]))
    np.add.at(sums, media, tally.values)
    parts = [tally.numbers(chunk @ sums) for chunk in _chunks(media, resamples)]
    nothing = np.full(resamples, np.nan)
    return {
        name: np.concatenate([part[name] for part in parts]) if name in known else nothing
        for name in names
    }


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
