"""Video-ChatGPT: open-ended questions whose answers a judge gives 0 to 5 points on five aspects.

    generic       correctness, detail, context
    temporal      temporal
    consistency   consistency, of the answers to two questions together

main = mean of the five aspects' means
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores
from elva_jax.evaluation.benchmarks.open_answers import (
    F1,
    HIGHEST,
    detail_mean,
    grade_open,
    open_question,
    was_judged,
)
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, find, read_records, unique

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


def read(root: Path) -> tuple[Question, ...]:
    """The questions of the three parts below a folder; see `FILES`.

    Raises:
      DataError: a file is missing or damaged.
    """
    media = MediaFolder(root)
    return unique(
        (
            question
            for part, patterns in ANNOTATIONS.items()
            for number, record in enumerate(read_records(find(root, patterns, FILES)))
            for question in _questions(record, part, number, media)
        ),
        str(root),
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
    main = Metric(name="mean of aspects", value=mean, count=count, maximum=HIGHEST)
    return Scores(main=main, others=(*aspects, f1), statuses=statuses)


def _group(grade: Grade) -> str:
    return str(grade.response.question.extra["group"])


BENCHMARK = Benchmark(
    name="video_chatgpt",
    title="Video-ChatGPT",
    kind="open",
    read=read,
    grade=grade_open,
    score=score,
    max_new_tokens=512,
    judge="video_chatgpt",
    files=FILES,
    scoring="with a judge the mean of its five aspects, 0 to 5; without one exact match and token"
    " F1, which say little about long answers",
)
