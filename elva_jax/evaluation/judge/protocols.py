"""The questions to a judge about a benchmark's answers, and the meaning of its verdicts.

qa              one request per answer: yes or no, and points
video_chatgpt   one per answer and aspect; consistency is of the two answers of a pair
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elva_jax.evaluation.benchmarks.base import Grade, Status
from elva_jax.evaluation.benchmarks.open_answers import HIGHEST, JUDGED, POINTS
from elva_jax.evaluation.judge.replies import Verdict

PAIR = "consistency"  # the aspect of two answers
GOOD = 3.0  # points from which an answer without a yes or no is right


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to the judge.

    Attributes:
      task: which prompt it gets.
      texts: what it judges, by name.
      targets: places of the grades that the verdict is about.
    """

    task: str
    texts: Mapping[str, Any]
    targets: tuple[int, ...]

    @property
    def content(self) -> str:
        """Equal for requests that ask the same."""
        return json.dumps([self.task, self.texts], sort_keys=True)


def requests(protocol: str, grades: Sequence[Grade]) -> list[Request]:
    """The requests about all answers that can be judged.

    Args:
      protocol: "qa" or "video_chatgpt".
      grades: of one benchmark.
    """
    if protocol == "qa":
        return [
            Request(task="qa", texts=_texts(grade), targets=(place,))
            for place, grade in enumerate(grades)
            if _is_open(grade)
        ]
    found = []
    pairs: dict[str, list[int]] = {}
    for place, grade in enumerate(grades):
        question = grade.response.question
        for aspect in question.extra["aspects"] if _is_open(grade) else ():
            if aspect == PAIR:
                pairs.setdefault(question.extra["group"], []).append(place)
            else:
                found.append(Request(task=aspect, texts=_texts(grade), targets=(place,)))
    for places in pairs.values():
        if len(places) == 2:
            found.append(_pair(grades, places[0], places[1]))
    return found


def _is_open(grade: Grade) -> bool:
    """Whether there are an answer and a reference to compare."""
    question = grade.response.question
    return not (question.options or grade.response.error) and bool(question.references)


def _texts(grade: Grade) -> dict[str, Any]:
    question = grade.response.question
    return {
        "question": question.text,
        "references": list(question.references),
        "answer": grade.response.text or "",
    }


def _pair(grades: Sequence[Grade], first: int, second: int) -> Request:
    one, other = grades[first].response, grades[second].response
    texts = {
        "first question": one.question.text,
        "second question": other.question.text,
        "references": list(one.question.references),
        "first answer": one.text or "",
        "second answer": other.text or "",
    }
    return Request(task=PAIR, texts=texts, targets=(first, second))


def graded(
    protocol: str, grades: Sequence[Grade], asked: Sequence[Request], verdicts: Sequence[Verdict]
) -> tuple[Grade, ...]:
    """The grades after judging; those that were not asked about because of a pair are unjudged.

    Args:
      protocol: as in `requests`.
      grades: the same as there.
      asked: the requests.
      verdicts: one per request.
    """
    found: list[dict[str, Verdict]] = [{} for _ in grades]
    for request, verdict in zip(asked, verdicts, strict=True):
        for place in request.targets:
            found[place][request.task] = verdict
    make = _qa_grade if protocol == "qa" else _aspects_grade
    return tuple(
        make(grade, of_grade) if _is_open(grade) else grade
        for grade, of_grade in zip(grades, found, strict=True)
    )


def _qa_grade(grade: Grade, verdicts: Mapping[str, Verdict]) -> Grade:
    verdict = verdicts["qa"]
    points = {} if verdict.points is None else {POINTS: verdict.points}
    status: Status = "unjudged"
    if verdict.right is not None:
        status = "right" if verdict.right else "wrong"
    return dataclasses.replace(
        grade,
        status=status,
        credit=float(verdict.right or False),
        details={**grade.details, JUDGED: 1.0, **points},
    )


def _aspects_grade(grade: Grade, verdicts: Mapping[str, Verdict]) -> Grade:
    aspects = grade.response.question.extra["aspects"]
    points = {name: v.points for name, v in verdicts.items() if v.points is not None}
    status: Status = "unjudged"
    mean = 0.0
    if len(points) == len(aspects):
        mean = sum(points.values()) / len(points)
        status = "right" if mean >= GOOD else "wrong"
    return dataclasses.replace(
        grade,
        status=status,
        credit=mean / HIGHEST,
        details={**grade.details, JUDGED: 1.0, **points},
    )
