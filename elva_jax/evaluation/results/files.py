"""One JSON file per run: every benchmark's settings, scores and predictions, and back.

    {"format": "elva_jax.evaluation", "version": 1, "evaluations": [
      {"benchmark": …, "title": …, "seconds": …, "settings": {…}, "scores": {WAY: {…}},
       "predictions": [
         {"question": {"key", "media", "prompt", "text", "options", "answer", "references", …},
          "text", "likelihoods", "letters", "error", "fits", "tokens", "seconds", "finished",
          "grades": {WAY: {"parsed", "status", "credit", "details"}}}]}]}

Encoded images are named by their SHA-256 and are not in the file.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.base import Evaluation, Grade, Metric, Response, Scores
from elva_jax.evaluation.columns import printable
from elva_jax.evaluation.results.codec import decode, encode
from elva_jax.evaluation.results.resampling import metrics_of
from elva_jax.utils.failures import repr_path
from elva_jax.utils.json import to_text
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import LARGEST_ARRAY, check_output, open_output, parse_json, read_bytes

FORMAT, VERSION = "elva_jax.evaluation", 1
GRADE = tuple(f.name for f in dataclasses.fields(Grade) if f.name != "response")
LARGEST = 1e9  # of a score
LONGEST = 300  # characters of a reason in a message
REMEDY = "write it again with elva evaluate --tasks … --json"


def save(evaluations: Sequence[Evaluation], path: str | Path, option: str = "--json") -> Path:
    """Writes a run's results, complete or not at all, and returns the path.

    Args:
      evaluations: one per benchmark.
      path: the file; folders above it are made.
      option: its name in messages.

    Raises:
      ConfigError: the file cannot be written.
    """
    path = check_output(path, option)
    with open_output(path, option) as file:
        # A line per prediction: a run of ten thousand can be searched with grep.
        file.write(f'{{"format": "{FORMAT}", "version": {VERSION}, "evaluations": [')
        for number, evaluation in enumerate(evaluations):
            file.write(",\n" if number else "\n")
            _write(file.write, evaluation)
        file.write("\n]}\n")
    return path


def load(path: str | Path) -> list[Evaluation]:
    """The results that `save` wrote.

    Raises:
      DataError: the file cannot be read, is damaged, or is another kind of file.
    """
    where = repr_path(path)
    try:
        content = parse_json(read_bytes(path, DataError, LARGEST_ARRAY))
    except ValueError as problem:
        raise DataError(f"{where}: is not JSON ({problem}); {REMEDY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        kind = "no result of elva evaluate --tasks"
        if isinstance(content, dict) and {"families", "macro"} <= content.keys():
            kind = "the result of elva evaluate --data, which has no predictions"
        raise DataError(f"{where}: is {kind}; {REMEDY}")
    if content.get("version") != VERSION:
        raise DataError(
            f"{where}: is of version {shown(content.get('version'))} of the format, and this"
            f" elva_jax reads version {VERSION}; {REMEDY}"
        )
    try:
        found = content.get("evaluations")
        if not isinstance(found, list) or not found:
            raise ValueError("evaluations: expected an array that is not empty")
        evaluations = [_decode(item, f"evaluations[{n}]") for n, item in enumerate(found)]
        _refuse_twice((evaluation.benchmark for evaluation in evaluations), "benchmark")
        return evaluations
    except ValueError as problem:
        what = printable(str(problem))[:LONGEST]  # it may quote the file
        raise DataError(f"{where}: is damaged or foreign ({what}); {REMEDY}") from None


def _write(write: Any, evaluation: Evaluation) -> None:
    """Writes one benchmark's object."""
    head = encode(
        {
            "benchmark": evaluation.benchmark,
            "title": evaluation.title,
            "seconds": evaluation.seconds,
            "settings": evaluation.settings,
            "scores": evaluation.scores,
        }
    )
    write(to_text(head)[:-1] + ', "predictions": [')
    for number, prediction in enumerate(_predictions(evaluation.grades)):
        write(",\n" if number else "\n")
        write(to_text(encode(prediction)))
    write("\n]}")


def _predictions(grades: Mapping[str, Sequence[Grade]]) -> Iterable[dict[str, Any]]:
    """One record per response, with its grade in every way of answering."""
    records: dict[int, tuple[Response, dict[str, Any]]] = {}
    for way, of_way in grades.items():
        for grade in of_way:
            response = grade.response
            _, of_response = records.setdefault(id(response), (response, {}))
            of_response[way] = {name: getattr(grade, name) for name in GRADE}
    for response, of_response in records.values():
        fields = {f.name: getattr(response, f.name) for f in dataclasses.fields(response)}
        yield {**fields, "grades": of_response}


def _decode(item: Any, place: str) -> Evaluation:
    """The evaluation of one benchmark's object.

    Raises:
      ValueError: it is damaged.
    """
    if not isinstance(item, dict):
        raise ValueError(f"{place}: expected an object")
    item = dict(item)
    predictions = item.pop("predictions", None)
    if not isinstance(predictions, list):
        raise ValueError(f"{place}.predictions: expected an array")
    whole = decode(Evaluation, {**item, "grades": {}}, place)
    scores: Mapping[str, Scores] = whole.scores
    if not scores:
        raise ValueError(f"{place}.scores: has no way of answering")
    for way, of_way in scores.items():
        for metric in metrics_of(of_way).values():
            _check_metric(metric, f"{place}.scores.{way[:40]}")
    keys: list[str] = []
    grades: dict[str, list[Grade]] = {way: [] for way in scores}
    for number, prediction in enumerate(predictions):
        at = f"{place}.predictions[{number}]"
        if not isinstance(prediction, dict) or not isinstance(prediction.get("grades"), dict):
            raise ValueError(f"{at}: expected an object with grades")
        fields = dict(prediction)
        of_response = fields.pop("grades")
        response = decode(Response, fields, at)
        keys.append(response.question.key)
        for way, grade in of_response.items():
            if way not in grades or not isinstance(grade, dict) or "response" in grade:
                raise ValueError(f"{at}.grades.{way[:40]}: belongs to no scores")
            grade = {**grade, "response": response}
            grades[way].append(decode(Grade, grade, f"{at}.grades.{way}"))
            _check_grade(grades[way][-1], f"{at}.grades.{way}")
    _refuse_twice(keys, f"{place}: question")
    return dataclasses.replace(whole, grades={way: tuple(of) for way, of in grades.items()})


def _check_metric(metric: Metric, place: str) -> None:
    """Refuses a number that cannot be shown on a scale."""
    place = f"{place}.{metric.name[:40]}"
    if not 0 < metric.maximum <= LARGEST:  # NaN is in no range
        raise ValueError(f"{place}: its maximum {metric.maximum:g} is no end of a scale")
    known = [v for v in (metric.value, metric.low, metric.high) if not math.isnan(v)]
    _check_numbers(known, place)


def _check_grade(grade: Grade, place: str) -> None:
    known = [value for value in grade.details.values() if not math.isnan(value)]
    _check_numbers((grade.credit, *known), place)


def _check_numbers(values: Iterable[float], place: str) -> None:
    for value in values:
        if not abs(value) <= LARGEST:
            raise ValueError(f"{place}: {value:g} is no score")


def _refuse_twice(names: Iterable[str], what: str) -> None:
    """Refuses a name that stands for two things, as comparisons go by names."""
    counts = Counter(names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{what} '{twice[0][:60]}' is there twice")
