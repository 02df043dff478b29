"""Two models on the same questions: differences, their intervals, and McNemar's exact test.

a right   b right    questions
  yes       no           r       the test asks whether r and s may be draws
  no        yes          s       of a fair coin
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elva_jax.errors import DataError, first_line
from elva_jax.evaluation.benchmarks.base import Evaluation, Grade, Metric, Scores, could_be_asked
from elva_jax.evaluation.results import resampling, settings
from elva_jax.evaluation.results.codec import encode
from elva_jax.evaluation.results.intervals import FEWEST, count_media, interval
from elva_jax.evaluation.results.resampling import MakeTally, Name, Score
from elva_jax.utils.numbers import shown


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of two models on the questions that both were asked.

    Attributes:
      axis: of the category; "" for all questions.
      category: its value.
      number: name of the number.
      a: the first model's.
      b: the second model's.
      difference: b - a.
      low: lower end of the 95 % interval of the difference, by a paired bootstrap over media.
      high: its upper end.
      only_a: questions that the first model alone has right.
      only_b: questions that the second model alone has right.
      p: of McNemar's exact test, two-sided; questions count as independent.
    """

    axis: str
    category: str
    number: str
    a: Metric
    b: Metric
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two evaluations of one benchmark, in one way of answering.

    Attributes:
      benchmark: its name.
      title: as in print.
      way: of answering.
      settings: (name, first model's value, second model's) of the settings that differ.
      common: number of questions that are compared.
      only_a: keys of questions that the first evaluation alone has.
      only_b: keys of those that the second alone has.
      changed: keys of questions whose text, options, answer or media differ; left out.
      unreadable: keys of the others whose media one of them could not read; left out.
      differences: the main number first.
      converted: (name, largest value in the first file, in the second, here) of the numbers that
        the files have on different scales; both are computed again from the questions.
    """

    benchmark: str
    title: str
    way: str
    settings: tuple[tuple[str, str, str], ...]
    common: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[str, ...]
    unreadable: tuple[str, ...]
    differences: tuple[Difference, ...]
    converted: tuple[tuple[str, float, float, float], ...] = ()


def compare(
    a: Evaluation,
    b: Evaluation,
    score: Score | None = None,
    *,
    tally: MakeTally | None = None,
    resamples: int = resampling.RESAMPLES,
) -> list[Comparison]:
    """Compares two models on one benchmark, in every way of answering that both have.

    Args:
      a: the first model's evaluation.
      b: the second model's.
      score: the benchmark's score function; None: the mean of the credits.
      tally: its numbers from sums, where it has them.
      resamples: number of resamples.

    Raises:
      DataError: the questions lack what the benchmark's score function needs.
    """
    differing = different_settings(a, b)
    found = []
    for way in a.grades:
        if way not in b.grades:
            continue
        ours = {g.response.question.key: g for g in a.grades[way]}
        theirs = {g.response.question.key: g for g in b.grades[way]}
        both = [key for key in ours if key in theirs]
        changed = [key for key in both if _asked(ours[key]) != _asked(theirs[key])]
        unread = [k for k in both if len(could_be_asked((ours[k], theirs[k]))) < 2]
        common = [key for key in both if key not in {*changed, *unread}]
        pairs = [ours[key] for key in common], [theirs[key] for key in common]
        scored = score or _mean_score(a.scores[way])
        differences = _differences(*pairs, scored, tally, resamples) if common else ()
        found.append(
            Comparison(
                benchmark=a.benchmark,
                title=a.title,
                way=way,
                settings=differing,
                common=len(common),
                only_a=tuple(key for key in ours if key not in theirs),
                only_b=tuple(key for key in theirs if key not in ours),
                changed=tuple(changed),
                unreadable=tuple(key for key in unread if key not in set(changed)),
                differences=differences,
                converted=_converted(a.scores[way], b.scores[way], differences),
            )
        )
    return found


def different_settings(a: Evaluation, b: Evaluation) -> tuple[tuple[str, str, str], ...]:
    """(name, first, second) of the settings with different values; "" where one has none."""
    first, second = settings.flat(a.settings), settings.flat(b.settings)
    return tuple(
        (name, first.get(name, ""), second.get(name, ""))
        for name in dict.fromkeys((*first, *second))
        if first.get(name) != second.get(name)
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
      only_a: questions that the first model alone has right.
      only_b: questions that the second model alone has right.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0

    def share(k: int) -> float:  # of all outcomes of n fair coins, those with k heads
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(ways - n * math.log(2))

    return min(1.0, 2 * math.fsum(share(k) for k in range(fewer + 1)))


def _converted(
    a: Scores, b: Scores, differences: Sequence[Difference]
) -> tuple[tuple[str, float, float, float], ...]:
    """The numbers of all questions that two files have on different scales."""
    ours, theirs = resampling.metrics_of(a), resampling.metrics_of(b)
    found = []
    for row in differences:
        name = row.axis, row.category, row.number
        if row.axis or name not in ours or name not in theirs:
            continue
        first, second = ours[name].maximum, theirs[name].maximum
        if first != second:
            found.append((row.number, first, second, row.a.maximum))
    return tuple(found)


def _asked(grade: Grade) -> tuple[object, ...]:
    """The parts of a question that must be equal: not its prompt, nor the folder of its media."""
    question = grade.response.question
    media = [(_file_names(m.source), m.kind, m.span) for m in question.media]
    return question.text, question.options, question.answer, question.references, media


def _file_names(source: bytes | str | tuple[str, ...]) -> object:
    if isinstance(source, bytes):
        return encode(source)
    return Path(source).name if isinstance(source, str) else [Path(path).name for path in source]


def _differences(
    a: Sequence[Grade], b: Sequence[Grade], score: Score, tally: MakeTally | None, resamples: int
) -> tuple[Difference, ...]:
    media = resampling.number_media(a)
    whole_a, whole_b = (_whole(side, score) for side in (a, b))
    drawn_a, drawn_b = (
        resampling.replicate(side, score, media, tally=tally, resamples=resamples)
        for side in (a, b)
    )
    found = []
    for name in whole_a:
        if name not in whole_b:
            continue
        axis, category, number = name
        right = [
            (one.status == "right", other.status == "right")
            for one, other in zip(a, b, strict=True)
            if not axis or one.response.question.categories.get(axis) == category
        ]
        only_a = sum(one and not other for one, other in right)
        only_b = sum(other and not one for one, other in right)
        fewer = min(len(drawn_a[name]), len(drawn_b[name]))
        known = count_media(a, media, name) >= FEWEST
        drawn = drawn_b[name][:fewer] - drawn_a[name][:fewer] if known else drawn_a[name][:0]
        low, high = interval(drawn)
        found.append(
            Difference(
                axis=axis,
                category=category,
                number=number,
                a=whole_a[name],
                b=whole_b[name],
                difference=whole_b[name].value - whole_a[name].value,
                low=low,
                high=high,
                only_a=only_a,
                only_b=only_b,
                p=mcnemar(only_a, only_b),
            )
        )
    return tuple(found)


def _whole(grades: Sequence[Grade], score: Score) -> dict[Name, Metric]:
    """All numbers of one model; its grades may be from a file that others have written."""
    try:
        return resampling.metrics_of(score(grades))
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        key = shown(grades[0].response.question.key)
        what = f"{type(problem).__name__}: {first_line(problem)}"
        raise DataError(
            f"the questions such as '{key}' lack what their benchmark's scores need ({what}); write"
            " the file again with elva evaluate --tasks … --json"
        ) from problem


def _mean_score(template: Scores) -> Score:
    """The mean of the credits in percent, over all questions and each category of the template."""

    def mean(grades: Sequence[Grade]) -> Metric:
        credit = [g.credit for g in grades if g.status != "no_reference"]
        value = 100 * math.fsum(credit) / len(credit) if credit else float("nan")
        return Metric(name="mean credit", value=value, count=len(credit))

    def score(grades: Sequence[Grade]) -> Scores:
        categories = {}
        for axis, values in template.categories.items():
            by_value: dict[str, list[Grade]] = {value: [] for value in values}
            for grade in grades:
                own = grade.response.question.categories.get(axis, "")
                by_value.setdefault(own, []).append(grade)
            categories[axis] = {v: mean(by_value[v]) for v in values if by_value[v]}
        return Scores(main=mean(grades), categories=categories)

    return score
