"""Open answers: how they are asked for, compared and scored.

without a judge   exact match = 100 · equal to a reference / all
                  token F1    = mean of 2 · common / (words of the answer + of the reference)
with a judge      accuracy    = 100 · "yes" / all        unjudged answers are in the denominator
                  score       = mean of the points, 0 to 5, of the answers that got some
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elva_jax.data.example import Media
from elva_jax.evaluation import answers
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import (
    Grade,
    Metric,
    Question,
    Response,
    Scores,
    Status,
    not_asked,
)

REQUEST = "Answer with a word or a short phrase."
EXACT, F1 = "exact_match", "token_f1"  # names of details
JUDGED, POINTS = "judged", "judge_score"  # details: 1 after a judge was asked; its points
HIGHEST = 5.0  # points


def open_question(
    key: str,
    media: Sequence[Media],
    text: str,
    references: Sequence[str],
    *,
    request: str = REQUEST,
    categories: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Question:
    """A question for an open answer.

    Args:
      key: its name.
      media: what it is about.
      text: the question, as its file has it.
      references: right answers; (): not public.
      request: a line after it that says how to answer; "": none.
      categories: by axis, the value that results are broken down by.
      extra: what the benchmark's scoring needs besides.
    """
    return Question(
        key=key,
        media=tuple(media),
        prompt=f"{text}\n{request}" if request else text,
        text=text,
        references=tuple(references),
        categories=dict(categories or {}),
        extra=dict(extra or {}),
    )


def as_sentence(text: str) -> str:
    """A question with a capital and a mark: `what is it` -> `What is it?`, as people write."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith(("?", ".", "!")) else text + "?"


def grade_open(response: Response) -> Grade:
    """Compares a written answer with the references; the best one counts."""
    text, references = response.text or "", response.question.references
    if response.error:
        return not_asked(response)
    if not references:
        return Grade(response=response, parsed=text, status="no_reference", credit=0.0)
    exact = any(answers.exact_match(text, reference) for reference in references)
    f1 = max(token_f1(text, reference) for reference in references)
    folded = answers.normalize(text)
    status: Status = "right" if exact else "wrong" if folded else "unparsed"
    return Grade(
        response=response,
        parsed=folded or None,
        status=status,
        credit=float(exact),
        details={EXACT: float(exact), F1: f1},
    )


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, after normalization."""
    said, wanted = (Counter(answers.normalize(text).split()) for text in (answer, reference))
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def open_scores(grades: Sequence[Grade]) -> Scores:
    """Exact match and token F1; where a judge was asked, its accuracy and score come first."""
    main = _accuracy(grades)
    others = [detail_mean(grades, F1, "token F1", factor=100.0)]
    if was_judged(grades):
        points = detail_mean(grades, POINTS, "judge score", maximum=HIGHEST)
        exact = detail_mean(grades, EXACT, "exact match", factor=100.0)
        others = [points, exact, *others]
    axes: dict[str, dict[str, list[Grade]]] = {}
    for grade in grades:
        for axis, value in grade.response.question.categories.items():
            axes.setdefault(axis, {}).setdefault(value, []).append(grade)
    return Scores(
        main=main,
        others=tuple(others),
        categories={
            axis: {value: _accuracy(of, judged=was_judged(grades)) for value, of in values.items()}
            for axis, values in axes.items()
        },
        statuses=choice.statuses(grades),
    )


def was_judged(grades: Sequence[Grade]) -> bool:
    """Whether a judge was asked about any answer."""
    return any(JUDGED in grade.details for grade in grades)


def _accuracy(grades: Sequence[Grade], *, judged: bool | None = None) -> Metric:
    judged = was_judged(grades) if judged is None else judged
    return choice.accuracy(grades, name="judge accuracy" if judged else "exact match")


def detail_mean(
    grades: Sequence[Grade],
    detail: str,
    name: str,
    *,
    maximum: float = 100.0,
    factor: float = 1.0,
    key: Callable[[Grade], str] = lambda grade: grade.response.question.key,
) -> Metric:
    """The mean of a detail over the questions that have it.

    Args:
      grades: all grades.
      detail: its name.
      name: of the metric.
      maximum: largest possible value.
      factor: of the mean.
      key: what questions share whose detail counts once.
    """
    found = {key(grade): grade.details[detail] for grade in grades if detail in grade.details}
    value = factor * math.fsum(found.values()) / len(found) if found else float("nan")
    return Metric(name=name, value=value, count=len(found), maximum=maximum)
