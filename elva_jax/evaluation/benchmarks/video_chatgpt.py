"""Video-ChatGPT: open-ended questions whose answers a judge gives 0 to 5 points on five aspects.

    generic       correctness, detail, context
    temporal      temporal
    consistency   consistency, of the answers to two questions together

main = mean of the five aspects' means
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import (
    Benchmark,
    Grade,
    Metric,
    Question,
    Scores,
    Tally,
    media_of,
)
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.open_answers import (
    F1,
    HIGHEST,
    JUDGED,
    detail_mean,
    grade_open,
    open_question,
    was_judged,
)
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique

FILES = "generic_qa.json, temporal_qa.json, consistency_qa.json; Test_Videos/{video_name}.mp4"
ANNOTATIONS = {
    "generic": ("generic_qa.json", "*/generic_qa.json", "Generic/*.parquet", "generic*.parquet"),
    "temporal": ("temporal_qa.json", "*/temporal_qa.json", "Temporal/*.parquet"),
    "consistency": ("consistency_qa.json", "*/consistency_qa.json", "Consistency/*.parquet"),
}
ASPECTS = {
    "generic": ("correctness", "detail", "context"),
    "temporal": ("temporal",),
    "consistency": ("consistency",),
}
ALL_ASPECTS = tuple(aspect for aspects in ASPECTS.values() for aspect in aspects)
MAIN = "mean of aspects"
_SUMMED = (*ALL_ASPECTS, F1, JUDGED)  # details


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions of the three parts below a folder; see `FILES`.

    Raises:
      DataError: a file is missing or damaged.
    """
    media = MediaFolder(folder.path)
    return unique(
        (
            question
            for part, patterns in ANNOTATIONS.items()
            for number, record in enumerate(read_records(folder.find(patterns, FILES)))
            for question in _questions(record, part, number, media)
        ),
        str(folder.path),
    )


def _questions(record: Record, part: str, number: int, media: MediaFolder) -> Iterator[Question]:
    """The question of a record, or the two of a pair."""
    video = media.locate(
        record.text("video_name"), record.key, folders=("Test_Videos", "videos", "video")
    )
    names: tuple[tuple[str, ...], ...] = (("Q1", "question_1"), ("Q2", "question_2"))
    if part != "consistency":
        names = (("Q", "question"),)
    texts = [record.text(*of_one) for of_one in names]
    for place, text in enumerate(texts):
        yield open_question(
            f"{part}/{number}" + (f"/{place}" if len(texts) > 1 else ""),
            [video],
            text,
            [record.text("A", "answer")],
            request="",
            categories={"part": part},
            extra={"group": f"{part}/{number}", "aspects": ASPECTS[part]},
        )


def score(grades: Sequence[Grade]) -> Scores:
    """The five means and their mean where a judge was asked; without one, exact match."""
    f1 = detail_mean(grades, F1, "token F1", factor=100.0)
    statuses = choice.statuses(grades)
    if not was_judged(grades):
        exact = choice.accuracy(grades, name="exact match")
        return Scores(main=exact, others=(f1,), statuses=statuses)
    aspects = [
        detail_mean(grades, aspect, aspect, maximum=HIGHEST, key=_group) for aspect in ALL_ASPECTS
    ]
    asked = [metric for metric in aspects if metric.count]
    mean = math.fsum(metric.value for metric in asked) / len(asked) if asked else float("nan")
    count = sum(metric.count for metric in asked)
    main = Metric(name=MAIN, value=mean, count=count, maximum=HIGHEST)
    return Scores(main=main, others=(*aspects, f1), statuses=statuses)


def tally(grades: Sequence[Grade]) -> Tally | None:
    """The same numbers from sums, where a judge was asked; None if a pair is about two media.

    Of each detail, the sums are its values and the number of answers that have it. A pair's points
    are added once, by its last answer.
    """
    media: dict[str, object] = {}
    for grade in grades:
        about = media_of(grade.response.question)
        if media.setdefault(_group(grade), about) != about:
            return None
    if not was_judged(grades):
        return None
    values = np.zeros((len(grades), len(_SUMMED), 2))
    for column, detail in enumerate(_SUMMED):
        last: dict[str, int] = {}
        for place, grade in enumerate(grades):
            if detail in grade.details:
                pair = detail in ALL_ASPECTS
                last[_group(grade) if pair else grade.response.question.key] = place
        for place in last.values():
            values[place, column] = grades[place].details[detail], 1
    return Tally(values=values.reshape(len(grades), -1), numbers=_of_sums)


def _of_sums(sums: np.ndarray) -> dict[tuple[str, str, str], np.ndarray]:
    """As `score`, float [R] of the sums of each detail, [R, details · 2]."""
    totals, counts = sums.reshape(len(sums), len(_SUMMED), 2).transpose(2, 1, 0)
    with np.errstate(invalid="ignore"):
        means = dict(zip(_SUMMED, totals / counts, strict=True))
        judged = counts[_SUMMED.index(JUDGED)] > 0
        aspects = np.where(judged, [means[aspect] for aspect in ALL_ASPECTS], np.nan)
        mean = np.nansum(aspects, 0) / np.isfinite(aspects).sum(0)
    named = dict(zip(ALL_ASPECTS, aspects, strict=True))
    named |= {MAIN: mean, "token F1": 100 * means[F1]}
    return {("", "", name): values for name, values in named.items()}


def _group(grade: Grade) -> str:
    return str(grade.response.question.extra["group"])


BENCHMARK = Benchmark(
    name="video_chatgpt",
    title="Video-ChatGPT",
    kind="open",
    reader=read,
    grade=grade_open,
    score=score,
    tally=tally,
    max_new_tokens=512,
    judge="video_chatgpt",
    files=FILES,
    scoring="with a judge the mean of its five aspects, 0 to 5; without one exact match and token"
    " F1, which say little about long answers",
)
