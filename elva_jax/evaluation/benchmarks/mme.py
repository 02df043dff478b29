"""MME: 14 tasks of yes-or-no questions, two about each image.

accuracy  = 100 · right questions / all questions of a task
accuracy+ = 100 · images with both questions right / images with both questions asked
task      = accuracy + accuracy+        perception: sum of 10 tasks, cognition: of 4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from elva_jax.errors import RecordError
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
from elva_jax.evaluation.benchmarks.pictures import locate_image
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.evaluation.benchmarks.yes_no import grade_yes_no, yes_no_question
from elva_jax.utils.read import read_text

FILES = (
    "{task}/{image}.txt with the questions beside the images (or in {task}/questions_answers_YN and"
    " {task}/images), or data/*.parquet, or {task}.txt with image, question and answer"
)
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
TASKS = (*PERCEPTION, *COGNITION)
SUM, TASK_MAXIMUM = "accuracy + accuracy+", 200.0  # of a task


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions of all tasks below a folder; see `FILES`.

    Raises:
      DataError: annotations are missing or damaged.
    """
    media = MediaFolder(folder.path)
    patterns = ("data/*.parquet", "*.parquet", *(f"{task}.txt" for task in TASKS))
    patterns += tuple(f"{task}/**/*.txt" for task in TASKS)
    files = folder.find(patterns, FILES)
    if files[0].suffix == ".parquet":
        records: Iterator[Record] = iter(read_records(files))
    else:
        records = (record for task in TASKS for record in _of_task(folder, task))
    numbers: dict[str, int] = {}
    questions = []
    for record in records:
        group = f"{record.text('category')}/{record.text('question_id')}"
        numbers[group] = numbers.get(group, -1) + 1
        questions.append(_question(record, group, numbers[group], media))
    return unique(questions, str(files[0]))


def _of_task(folder: Folder, task: str) -> Iterator[Record]:
    """Records of one task, which is one table, or a file per image."""
    if table := folder.file(f"{task}.txt"):
        for key, fields in _rows(table, 3):
            image, question, answer = fields
            yield Record(key, _fields(task, image, question, answer))
        return
    for file in folder.find((f"{task}/*.txt", f"{task}/questions_answers_YN/*.txt"), FILES):
        for key, (question, answer) in _rows(file, 2):
            yield Record(key, _fields(task, file.stem, question, answer))


def _fields(task: str, image: str, question: str, answer: str) -> Mapping[str, str]:
    return {
        "category": task,
        "question_id": image,
        "image": image,
        "question": question,
        "answer": answer,
    }


def _rows(file: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """The place and the tab-separated values of each line."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            values = [value.strip() for value in line.split("\t")]
            key = f"{file.parent.name}/{file.name}:{number}"
            if len(values) < columns:
                raise RecordError(key, f"has {len(values)} values between tabs, not {columns}")
            yield key, values[:columns]


def _question(record: Record, group: str, number: int, media: MediaFolder) -> Question:
    task = record.text("category")
    return yes_no_question(
        f"{group}/{number}",
        [locate_image(record.require("image"), record.key, media, (f"{task}/images", task))],
        record.text("question"),
        record.text("answer"),
        categories={"task": task},
        extra={"group": group},
    )


def score(grades: Sequence[Grade]) -> Scores:
    """The sums of the tasks that were asked; perception is the main number."""
    by_task: dict[str, list[Grade]] = {task: [] for task in TASKS}
    for grade in grades:
        by_task.setdefault(grade.response.question.categories["task"], []).append(grade)
    tasks = {task: _task_score(of_task) for task, of_task in by_task.items()}
    others = [task for task in tasks if task not in COGNITION]
    return Scores(
        main=_sum([tasks[task] for task in others], "perception", 2000.0),
        others=(
            _sum([tasks[task] for task in COGNITION], "cognition", 800.0),
            _sum(list(tasks.values()), "perception + cognition", 2800.0),
            choice.accuracy(grades),
        ),
        categories={"task": tasks},
        statuses=choice.statuses(grades),
    )


def _task_score(grades: Sequence[Grade]) -> Metric:
    """The sum of both accuracies of a task; NaN if no image has both questions."""
    counted = [grade for grade in grades if grade.status != "no_reference"]
    images: dict[str, list[float]] = {}
    for grade in counted:
        group = grade.response.question.extra["group"]
        images.setdefault(group, []).append(grade.credit)
    whole = [credits for credits in images.values() if len(credits) > 1]
    if not whole:
        return Metric(name=SUM, value=float("nan"), count=0, maximum=TASK_MAXIMUM)
    both = sum(all(credits) for credits in whole) / len(whole)
    accuracy = sum(grade.credit for grade in counted) / len(counted)
    return Metric(
        name=SUM, value=100 * accuracy + 100 * both, count=len(counted), maximum=TASK_MAXIMUM
    )


def tally(grades: Sequence[Grade]) -> Tally | None:
    """The same numbers from sums of each task; None if questions about one image have two media.

    A task's sums are its questions, the right ones, the images with both questions, and those of
    them with both right. An image's are added by its first question.
    """
    of_image: dict[str, list[int]] = {}
    for place, grade in enumerate(grades):
        if grade.status != "no_reference":
            of_image.setdefault(grade.response.question.extra["group"], []).append(place)
    questions = [grade.response.question for grade in grades]
    if any(len({media_of(questions[place]) for place in of}) > 1 for of in of_image.values()):
        return None
    tasks = list(dict.fromkeys((*TASKS, *(question.categories["task"] for question in questions))))
    values = np.zeros((len(grades), len(tasks), 4))
    for places in of_image.values():
        credits = [grades[place].credit for place in places]
        for place, credit in zip(places, credits, strict=True):
            values[place, tasks.index(questions[place].categories["task"]), :2] = 1, credit
        if len(places) > 1:
            first = tasks.index(questions[places[0]].categories["task"])
            values[places[0], first, 2:] = 1, all(credits)
    return Tally(values=values.reshape(len(grades), -1), numbers=partial(_of_sums, tasks))


def _of_sums(tasks: Sequence[str], sums: np.ndarray) -> dict[tuple[str, str, str], np.ndarray]:
    """As `score`, float [R] of the sums of each task, [R, tasks · 4]."""
    asked, right, images, both = sums.reshape(len(sums), len(tasks), 4).transpose(2, 1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_tasks = np.where(images > 0, 100 * (right / asked) + 100 * (both / images), np.nan)
        accuracy = 100 * right.sum(0) / asked.sum(0)
    cognition = np.isin(tasks, COGNITION)
    found = {("task", task, SUM): value for task, value in zip(tasks, of_tasks, strict=True)}
    for name, chosen in (
        ("perception", ~cognition),
        ("cognition", cognition),
        ("perception + cognition", cognition | True),
    ):
        any_asked = np.isfinite(of_tasks[chosen]).any(0)
        found["", "", name] = np.where(any_asked, np.nansum(of_tasks[chosen], 0), np.nan)
    found["", "", "accuracy"] = accuracy
    return found


def _sum(tasks: Sequence[Metric], name: str, maximum: float) -> Metric:
    asked = [task.value for task in tasks if task.count]
    count = sum(task.count for task in tasks)
    value = sum(asked) if asked else float("nan")
    return Metric(name=name, value=value, count=count, maximum=maximum)


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    kind="yes_no",
    reader=read,
    grade=grade_yes_no,
    score=score,
    tally=tally,
    files=FILES,
    scoring="per task the accuracy over questions and that over images with both right, summed over"
    " the perception tasks; beside it cognition (0 to 800) and both",
)
