"""Responses as lines of a journal (`inference.batches.journal`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.base import Question, Response
from elva_jax.evaluation.runner.identity import question_hash
from elva_jax.inference.batches.journal import Head, Line
from elva_jax.inference.scoring import Likelihood
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown

FOLDER = "answers"  # of the journals of one benchmark
WAY_OUT = "choose another output folder, or remove this one to ask everything again"


def make_head(benchmark: str, settings: Mapping[str, Any]) -> Head:
    """The head of the journals of one benchmark."""
    fields = {"benchmark": benchmark, "settings": dict(settings)}
    return Head(fields=fields, of="evaluation", way_out=WAY_OUT)


def stale_of(questions: Sequence[Question]) -> Callable[[Line], bool]:
    """Whether a line says that a question could not be asked whose files have changed since."""
    known = {question.key: question for question in questions}

    def stale(line: Line) -> bool:
        key, error = line.record.get("key"), line.record.get("error")
        question = known.get(key) if isinstance(key, str) else None
        return bool(error) and question is not None and line.record.get("media") != _state(question)

    return stale


def reader_of(questions: Sequence[Question]) -> Callable[[Line], tuple[str, Response]]:
    """Reads the response of a line; the questions are all that its benchmark has."""
    known = {question.key: (question, question_hash(question)) for question in questions}

    def read(line: Line) -> tuple[str, Response]:
        key = line.record.get("key")
        question, expected = known.get(key, (None, "")) if isinstance(key, str) else (None, "")
        if question is None or line.record.get("hash") != expected:
            raise DataError(
                f"{repr_path(line.path)}: line {line.number}: the question '{shown(key)}' is not"
                f" the one of this benchmark's files any more; {WAY_OUT}"
            )
        return question.key, _to_response(question, line.record)

    return read


def to_record(response: Response) -> dict[str, Any]:
    """The line of a response."""
    record = {
        "key": response.question.key,
        "hash": question_hash(response.question),
        "text": response.text,
        "finished": response.finished,
        "likelihoods": [_pair(score) for score in response.likelihoods],
        "letters": [_pair(score) for score in response.letters],
        "error": response.error,
        "fits": response.fits,
        "tokens": list(response.tokens),
        "seconds": response.seconds,
    }
    return record | ({"media": _state(response.question)} if response.error else {})


def _state(question: Question) -> list[Any]:
    """The state of a question's files, as JSON: it changes where one is put in place."""
    sources = [medium.source for medium in question.media if not isinstance(medium.source, bytes)]
    files = [file for each in sources for file in ([each] if isinstance(each, str) else each)]
    return [question.problem != "", *map(_file_state, files)]


def _file_state(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def _pair(score: Likelihood) -> tuple[float | None, int]:
    return (score.total if math.isfinite(score.total) else None), score.tokens


def _to_response(question: Question, record: Mapping[str, Any]) -> Response:
    """The response of a record.

    Raises:
      KeyError, TypeError, ValueError: it is damaged.
    """
    text, error, finished = record["text"], record["error"], record["finished"]
    fits = record.get("fits", True)  # older journals have no such key
    if not (isinstance(text, str | None) and isinstance(error, str)):
        raise TypeError
    if not (isinstance(finished, bool) and isinstance(fits, bool)):
        raise TypeError
    return Response(
        question=question,
        text=text,
        finished=finished,
        likelihoods=_likelihoods(record["likelihoods"]),
        letters=_likelihoods(record["letters"]),
        error=error,
        fits=fits,
        tokens=tuple(map(int, record["tokens"])),
        seconds=float(record["seconds"]),
    )


def _likelihoods(pairs: Sequence[Any]) -> tuple[Likelihood, ...]:
    return tuple(
        Likelihood(float("nan") if total is None else float(total), int(tokens))
        for total, tokens in pairs
    )
