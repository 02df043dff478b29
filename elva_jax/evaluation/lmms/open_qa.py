"""MSVD-QA, MSRVTT-QA and TGIF-QA (frames) for lmms-eval, which lacks them.

Files, prompts and the comparison without a judge are those of `elva evaluate --tasks`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError
from elva_jax.evaluation.answers import exact_match
from elva_jax.evaluation.benchmarks import registry
from elva_jax.evaluation.benchmarks.open_answers import REQUEST, as_sentence, token_f1
from elva_jax.evaluation.lmms import judging

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
        for question in benchmark.read(Path(root).expanduser())
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


def grade(doc: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Exact match and token F1, and a judge's verdict where one is configured."""
    found: dict[str, Any] = {
        "exact_match": float(exact_match(answer, doc["answer"])),
        "token_f1": token_f1(answer, doc["answer"]),
    }
    if (judge := judging.configured()) is not None:
        verdict = judging.ask(judge, doc["question"], doc["answer"], answer)
        found |= dict.fromkeys(("judge_accuracy", "judge_score", "judge_failures"), verdict)
    return found


def judge_accuracy(verdicts: Sequence[judging.Verdict | None]) -> float:
    """The share of answers judged right, in percent of all; a failure is not right."""
    right = [verdict is not None and verdict.right for verdict in verdicts]
    return 100 * sum(right) / max(len(right), 1)


def judge_score(verdicts: Sequence[judging.Verdict | None]) -> float:
    """The mean score from 0 to 5 of those that were judged."""
    scores = [verdict.score for verdict in verdicts if verdict is not None]
    return sum(scores) / len(scores) if scores else float("nan")


def judge_failures(verdicts: Sequence[judging.Verdict | None]) -> int:
    """The number of answers without a verdict."""
    return sum(verdict is None for verdict in verdicts)
