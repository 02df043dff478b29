"""Responses as grades and scores, by way of answering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from elva_jax.evaluation.benchmarks.base import (
    Benchmark,
    Evaluation,
    Grade,
    Response,
    not_asked,
    scored,
)
from elva_jax.evaluation.benchmarks.choice import grade_option
from elva_jax.evaluation.runner.settings import Way
from elva_jax.inference.scoring import Likelihood

Values = Callable[[Response], list[float]]  # per option; [] where not measured


def _sums(scores: Sequence[Likelihood]) -> list[float]:
    return [score.total for score in scores]


def _per_character(response: Response) -> list[float]:
    options = [option.strip() for option in response.question.options]
    return [
        score.total / max(len(option), 1)
        for score, option in zip(response.likelihoods, options, strict=False)
    ]


# Names of the scores, by way of answering.
PICKS: Mapping[Way, Mapping[str, Values]] = {
    "likelihood": {
        "likelihood": lambda response: _sums(response.likelihoods),
        "likelihood_char": _per_character,
        "likelihood_token": lambda response: [score.mean for score in response.likelihoods],
    },
    "letter": {"letter": lambda response: _sums(response.letters)},
}


def evaluation_of(
    benchmark: Benchmark,
    responses: Sequence[Response],
    ways: Sequence[Way],
    settings: Mapping[str, Any],
    seconds: float,
) -> Evaluation:
    """Grades and scores of one benchmark.

    Args:
      benchmark: the benchmark.
      responses: one per question, in their order.
      ways: how they were asked.
      settings: what a comparison needs.
      seconds: wall-clock time.
    """
    grades: dict[str, tuple[Grade, ...]] = {}
    for way in ways:
        if way == "generated":
            grades[way] = tuple(_grade(benchmark, response) for response in responses)
            continue
        for name, values in PICKS[way].items():
            grades[name] = tuple(_pick(response, values(response)) for response in responses)
    return Evaluation(
        benchmark=benchmark.name,
        title=benchmark.title,
        scores={name: scored(benchmark.score, of_way) for name, of_way in grades.items()},
        grades=grades,
        settings=settings,
        seconds=seconds,
    )


def _grade(benchmark: Benchmark, response: Response) -> Grade:
    if response.error:
        return not_asked(response)
    return benchmark.grade(response)


def _pick(response: Response, values: Sequence[float]) -> Grade:
    """The likeliest option, the first of equal ones; none if a likelihood is not finite.

    Open questions beside those with options are not asked in this way, whatever their media.
    """
    if not response.question.options:
        return Grade(response=response, parsed=None, status="no_reference", credit=0.0)
    picked = int(np.argmax(values)) if values and np.all(np.isfinite(values)) else None
    return grade_option(response, picked)
