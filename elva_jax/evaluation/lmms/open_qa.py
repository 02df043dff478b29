"""MSVD-QA, MSRVTT-QA and TGIF-QA (frames) for lmms-eval, which lacks them.

Files, prompts, scores and the judge's prompt are those of `elva evaluate --tasks`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks import registry
from elva_jax.evaluation.benchmarks.base import Response
from elva_jax.evaluation.benchmarks.open_answers import (
    EXACT,
    F1,
    POINTS,
    REQUEST,
    as_sentence,
    grade_open,
    open_question,
)
from elva_jax.evaluation.judge.judge import Judge

VARIABLES = {"msvd_qa": "MSVD_QA_ROOT", "msrvtt_qa": "MSRVTT_QA_ROOT", "tgif_qa": "TGIF_QA_ROOT"}


def docs_of(name: str, environ: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """The test set in the folder that the environment names.

    Returns:
      Per question its key as `question_id`, `video` (a path, whether it exists or not), `question`
      and `answer`.

    Raises:
      ConfigError: the variable is not set.
      DataError: files are missing or damaged.
    """
    (benchmark,) = registry.find([name])
    root = environ.get(VARIABLES[name])
    if not root:
        raise ConfigError(
            f"{VARIABLES[name]} is not set; it names the folder of {benchmark.title} with"
            f" {benchmark.files}"
        )
    return [
        {
            "question_id": question.key,
            "video": str(question.media[0].source),
            "question": question.text,
            "answer": question.references[0],
        }
        for question in benchmark.read(Path(root).expanduser(), follow_links=True)
    ]


def prompt(doc: Mapping[str, Any], given: Mapping[str, Any] | None) -> str:
    """The question as a sentence with a request for a short answer.

    Args:
      doc: the document.
      given: the task's `lmms_eval_specific_kwargs`, whose pre_prompt and post_prompt stand around
        it; without a post_prompt the request follows.
    """
    given = given or {}
    after = given.get("post_prompt", f"\n{REQUEST}")
    return f"{given.get('pre_prompt', '')}{as_sentence(doc['question'])}{after}"


def grade(doc: Mapping[str, Any], answer: str, judge: Judge | None = None) -> dict[str, Any]:
    """Exact match and token F1, and what a judge says, as `elva evaluate --tasks` has them.

    Returns:
      The values by metric. Those of the judge are there only with one; `judge_score` is None where
      it failed, which never raises: lmms-eval would end the run.
    """
    question = open_question(doc["question_id"], (), doc["question"], [doc["answer"]])
    grade = grade_open(Response(question=question, text=answer))
    found = {EXACT: grade.details[EXACT], F1: grade.details[F1]}
    if judge is None:
        return found
    (judged,) = judge.grade("qa", [grade])
    return found | {
        "judge_accuracy": 100.0 * judged.credit,
        "judge_score": judged.details.get(POINTS),
        "judge_failures": int(judged.status == "unjudged"),
    }


def mean_score(points: Sequence[float | None]) -> float:
    """The mean of the points of those answers that got some."""
    found = [value for value in points if value is not None]
    return sum(found) / len(found) if found else float("nan")
