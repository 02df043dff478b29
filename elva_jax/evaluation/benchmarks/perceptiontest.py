"""Perception Test, multiple choice of the validation split, three options each.

accuracy = right / all        also by area and by kind of reasoning
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.tables import (
    MediaFolder,
    Record,
    as_integer,
    read_records,
    unique,
)
from elva_jax.utils.read import read_json

FILES = "mc_question_valid.json (or all_valid.json), videos/{video}.mp4"


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions below a folder; see `FILES`.

    Raises:
      DataError: annotations are missing or damaged.
    """
    names = ("mc_question_valid.json", "all_valid.json", "mc_question_val/*.parquet", "*.parquet")
    files = folder.find(names, FILES)
    records = _by_video(files[0]) if files[0].suffix == ".json" else read_records(files)
    media = MediaFolder(folder.path)
    return unique((_question(record, media) for record in records), str(files[0]))


def _by_video(path: Path) -> Iterator[Record]:
    """One record per question of a file that has an object per video."""
    for video, entry in read_json(path).items():
        key = f"{path.name}[{video[:60]!r}]"
        questions: object = entry.get("mc_question", ()) if isinstance(entry, dict) else None
        if not isinstance(questions, (list, tuple)):
            raise RecordError(key, "has no list 'mc_question'")
        for number, question in enumerate(questions):
            if not isinstance(question, dict):
                raise RecordError(key, f"its question {number} is no object")
            yield Record(f"{key}[{number}]", {"video_name": video, **question})


def _question(record: Record, media: MediaFolder) -> Question:
    video = record.text("video_name")
    return choice.choice_question(
        f"{video}_{record.text('id', 'question_id')}",
        [media.locate(video, record.key, folders=("videos", "video"))],
        record.text("question"),
        record.texts("options"),
        _answer(record),
        categories={axis: record.text(axis) for axis in ("area", "reasoning") if record.get(axis)},
    )


def _answer(record: Record) -> int | None:
    """The right option; None in the test split, whose answers are not public."""
    answer = record.get("answer_id")
    return None if answer is None else as_integer(answer, record.key, "answer_id")


BENCHMARK = Benchmark(
    name="perceptiontest",
    title="Perception Test (multiple choice, validation)",
    kind="choice",
    reader=read,
    grade=choice.grade_choice,
    score=choice.micro_scores(maximum=1.0),
    files=FILES,
    scoring="right answers among all questions",
)
