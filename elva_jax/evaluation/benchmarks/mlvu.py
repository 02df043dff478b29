"""MLVU: multiple choice about long videos, seven types of questions, nine in the test set.

    M-Avg = mean over the types of 100 · right / all

The mean is over the types that were asked. lmms-eval divides by 7 (9) even if a type is absent;
its number is listed as "M-Avg (lmms-eval)".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from elva_jax.data.conversation import LETTERS
from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.utils.numbers import shown

FILES = "json/1_plotQA.json to json/7_topic_reasoning.json, video/1_plotQA/ and so on"
TEST_FILES = (
    "test-ground-truth/test_mcq_gt.json with the questions and answers"
    " (or MLVU_Test/test_question.json without answers), MLVU_Test/video/"
)
TEST_ANNOTATIONS = (
    *("test-ground-truth/test_mcq_gt.json", "test_mcq_gt.json", "data/*.parquet", "*.parquet"),
    *("MLVU_Test/test_question.json", "test_question.json", "test_multi_choice_tasks.json"),
)
FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
TYPES = tuple(FOLDERS)
TEST_TYPES = (
    *("plotQA", "needleQA", "ego", "count", "order", "anomaly_reco", "topic_reasoning"),
    *("sportsQA", "tutorialQA"),
)
SYNONYMS = {"findNeedle": "needle"}  # of one type, in the original files and elsewhere


def read(folder: Folder) -> tuple[Question, ...]:
    """The multiple-choice questions of the dev set below a folder; see `FILES`.

    Types whose file is absent have no questions.

    Raises:
      DataError: there is no file, or one is damaged.
    """
    names = [f"{folder}.json" for folder in FOLDERS.values()]
    patterns = [f"{place}[1-7]_*.json" for place in ("json/", "MLVU/json/", "")]
    patterns += ("data/*.parquet", "*.parquet")
    files = folder.find(patterns, f"{FILES}; for example {names[0]}")
    return _questions(files, folder, TYPES)


def read_test(folder: Folder) -> tuple[Question, ...]:
    """The multiple-choice questions of the test set below a folder; see `TEST_FILES`.

    Raises:
      DataError: the file is missing or damaged.
    """
    return _questions(folder.find(TEST_ANNOTATIONS, TEST_FILES), folder, TEST_TYPES)


def _questions(files: Sequence[Path], folder: Folder, types: Sequence[str]) -> tuple[Question, ...]:
    media = MediaFolder(folder.path)
    numbers = dict.fromkeys(types, 0)
    questions = []
    for record in read_records(files):
        kind = record.text("question_type", "task_type")
        kind = SYNONYMS.get(kind, kind)
        if kind not in numbers:
            raise RecordError(
                record.key, f"its type {shown(kind[:60])} is none of {', '.join(types)}"
            )
        questions.append(_question(record, kind, numbers[kind], media))
        numbers[kind] += 1
    return unique(questions, str(files[0]))


def _question(record: Record, kind: str, number: int, media: MediaFolder) -> Question:
    text = record.text("question")
    answer: int | None = None
    if record.get("candidates") is not None:
        options = record.texts("candidates")
        if record.get("answer") is not None:
            answer = choice.text_index(record.text("answer"), options, record.key)
    else:  # a copy for lmms-eval: the options are part of the question, the answer is a letter
        text, options = choice.split_question(text)
        answer = choice.letter_index(record.text("answer"), options, record.key)
    folders = (f"video/{FOLDERS[kind]}", "video") if kind in FOLDERS else ("video",)
    return choice.choice_question(
        record.text("question_id") if record.get("question_id") is not None else f"{kind}/{number}",
        [media.locate(record.text("video", "video_name"), record.key, folders=folders)],
        text,
        options,
        answer,
        categories={"type": kind},
    )


def score(types: Sequence[str], grades: Sequence[Grade]) -> Scores:
    """M-Avg over the types that were asked; the others are listed without a value."""
    categories = choice.by_category(grades, known={"type": types})
    per_type = categories["type"]
    main = choice.mean(list(per_type.values()), "M-Avg")
    total = sum(metric.value for metric in per_type.values() if metric.count)
    return Scores(
        main=main,
        others=(
            Metric(name="M-Avg (lmms-eval)", value=total / len(types), count=main.count),
            Metric(
                name="types asked",
                value=float(sum(metric.count > 0 for metric in per_type.values())),
                count=main.count,
                maximum=float(len(types)),
            ),
            choice.accuracy(grades),
        ),
        categories=categories,
        statuses=choice.statuses(grades),
    )


def submission(grades: Sequence[Grade]) -> list[dict[str, str]]:
    """The chosen letter of every question, as the test set's server wants it."""
    return [
        {
            "question_id": grade.response.question.key,
            "question_type": grade.response.question.categories["type"],
            "option": LETTERS[grade.parsed] if isinstance(grade.parsed, int) else "",
        }
        for grade in grades
    ]


def _benchmark(
    name: str,
    title: str,
    reader: Callable[[Folder], Sequence[Question]],
    types: Sequence[str],
    files: str,
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        kind="choice",
        reader=reader,
        grade=choice.grade_choice,
        score=partial(score, types),
        files=files,
        scoring="mean of the accuracies of the types that were asked",
    )


BENCHMARK = _benchmark("mlvu", "MLVU (dev)", read, TYPES, FILES)
TEST = dataclasses.replace(
    _benchmark("mlvu_test", "MLVU (test)", read_test, TEST_TYPES, TEST_FILES), submission=submission
)
