"""A journal of responses: a file of JSON lines that only grows, and survives a kill at any moment.

    {"journal": 1, "benchmark": "videomme", "settings": {…}}      the head
    {"key": "12-1", "hash": "…", "text": "B", …}                   one line per question

A batch of responses is written and synced before the next one is asked. A last line without its end
is what a killed process left; it is cut off, and its question is asked again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.base import Question, Response
from elva_jax.evaluation.runner.identity import question_hash
from elva_jax.inference.scoring import Likelihood
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import parse_json, read_lines

VERSION = 1
LONGEST_LINE = 2**24
WAY_OUT = "choose another output folder, or remove this one to ask everything again"


class Journal:
    """One process's open journal.

    Args:
      path: the file; it is continued, or made.
      head: what `make_head` gives.

    Raises:
      DataError: the file is of another model, benchmark or setting, or damaged.
      OSError: it cannot be written.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._file = path.open("ab")
        try:
            size = _whole_lines(path)
            self._file.truncate(size)
            if not size:
                self._write([head])
            check_head(path, head)
        except BaseException:
            self._file.close()
            raise

    def append(self, responses: Sequence[Response]) -> None:
        """Writes responses so that they outlive this process and its machine."""
        self._write([_to_record(response) for response in responses])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(record, ensure_ascii=True, allow_nan=False) for record in records]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def make_head(benchmark: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of the journals of one benchmark."""
    return {"journal": VERSION, "benchmark": benchmark, "settings": dict(settings)}


def check_head(path: Path, head: Mapping[str, Any]) -> None:
    """Checks that a journal was made by the same model with the same settings.

    Raises:
      DataError: it was not; names the first difference.
    """
    line = next(iter(read_lines(path, DataError, LONGEST_LINE)), b"")
    if not line.endswith(b"\n"):
        return  # its process was killed before it had asked anything
    found = _parse(path, 1, line)
    if found.get("journal") != VERSION:
        raise DataError(
            f"{repr_path(path)}: is no journal of version {VERSION} of an evaluation; {WAY_OUT}"
        )
    expected = json.loads(json.dumps(head))
    theirs, ours = _flat(found), _flat(expected)
    for name in (*ours, *theirs):
        if theirs.get(name) != ours.get(name):
            raise DataError(
                f"{repr_path(path)}: holds answers of another evaluation ({name}:"
                f" {shown(theirs.get(name))}, now {shown(ours.get(name))}); {WAY_OUT}"
            )


def load(
    path: Path, head: Mapping[str, Any], questions: Mapping[str, tuple[Question, str]]
) -> dict[str, Response]:
    """The responses in a journal, by key of the question; the first one of each counts.

    Args:
      path: the file.
      head: what it must begin with.
      questions: all questions of the benchmark by key, with their hashes.

    Raises:
      DataError: the file is of another model, benchmark or setting, or damaged.
    """
    check_head(path, head)
    found: dict[str, Response] = {}
    for number, line in enumerate(read_lines(path, DataError, LONGEST_LINE), start=1):
        if number == 1 or not line.endswith(b"\n"):
            continue
        record = _parse(path, number, line)
        key = record.get("key")
        question, expected = questions.get(key, (None, None)) if isinstance(key, str) else (None, 0)
        if question is None or record.get("hash") != expected:
            raise DataError(
                f"{repr_path(path)}: line {number}: the question '{shown(key)}' is not the one of"
                f" this benchmark's files any more; {WAY_OUT}"
            )
        try:
            response = _to_response(question, record)
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, number, "not a response") from None
        found.setdefault(question.key, response)
    return found


def _to_record(response: Response) -> dict[str, Any]:
    return {
        "key": response.question.key,
        "hash": question_hash(response.question),
        "text": response.text,
        "finished": response.finished,
        "likelihoods": [_pair(score) for score in response.likelihoods],
        "letters": [_pair(score) for score in response.letters],
        "error": response.error,
        "tokens": list(response.tokens),
        "seconds": response.seconds,
    }


def _pair(score: Likelihood) -> tuple[float | None, int]:
    return (score.total if math.isfinite(score.total) else None), score.tokens


def _to_response(question: Question, record: Mapping[str, Any]) -> Response:
    """The response of a record.

    Raises:
      KeyError, TypeError, ValueError: it is damaged.
    """
    text, error, finished = record["text"], record["error"], record["finished"]
    if not (isinstance(text, str | None) and isinstance(error, str) and isinstance(finished, bool)):
        raise TypeError
    return Response(
        question=question,
        text=text,
        finished=finished,
        likelihoods=_likelihoods(record["likelihoods"]),
        letters=_likelihoods(record["letters"]),
        error=error,
        tokens=tuple(map(int, record["tokens"])),
        seconds=float(record["seconds"]),
    )


def _likelihoods(pairs: Sequence[Any]) -> tuple[Likelihood, ...]:
    return tuple(
        Likelihood(float("nan") if total is None else float(total), int(tokens))
        for total, tokens in pairs
    )


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    return sum(
        len(line) for line in read_lines(path, DataError, LONGEST_LINE) if line[-1:] == b"\n"
    )


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as problem:
        raise _damaged(path, number, str(problem)) from None
    if not isinstance(record, dict):
        raise _damaged(path, number, "not an object")
    return record


def _damaged(path: Path, number: int, reason: str) -> DataError:
    return DataError(
        f"{repr_path(path)}: line {number} is damaged ({reason}); remove the line, and its question"
        " is asked again"
    )


def _flat(head: Mapping[str, Any]) -> dict[str, Any]:
    """The head's values by name, with the settings beside the others."""
    settings = head.get("settings")
    rest = {name: value for name, value in head.items() if name != "settings"}
    return rest | (settings if isinstance(settings, dict) else {})
