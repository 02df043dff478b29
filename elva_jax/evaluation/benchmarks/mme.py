"""MME: 14 tasks of yes-or-no questions, two about each image.

accuracy  = 100 · right questions / all questions of a task
accuracy+ = 100 · images with both questions right / images with both questions asked
task      = accuracy + accuracy+        perception: sum of 10 tasks, cognition: of 4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores
from elva_jax.evaluation.benchmarks.pictures import locate_image
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, find, read_records, unique
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
TASK_MAXIMUM = 200.0


def read(root: Path) -> tuple[Question, ...]:
    """The questions of all tasks below a folder; see `FILES`.

    Raises:
      DataError: annotations are missing or damaged.
    """
    media = MediaFolder(root)
    patterns = ("data/*.parquet", "*.parquet", *(f"{task}.txt" for task in TASKS))
    patterns += tuple(f"{task}/**/*.txt" for task in TASKS)
    files = find(root, patterns, FILES)
    if files[0].suffix == ".parquet":
        records: Iterator[Record] = iter(read_records(files))
    else:
        records = (record for task in TASKS for record in _of_task(root, task))
    numbers: dict[str, int] = {}
    questions = []
    for record in records:
        group = f"{record.text('category')}/{record.text('question_id')}"
        numbers[group] = numbers.get(group, -1) + 1
        questions.append(_question(record, group, numbers[group], media))
    return unique(questions, str(files[0]))


def _of_task(root: Path, task: str) -> Iterator[Record]:
    """Records of one task, which is one table, or a file per image."""
    if (table := root / f"{task}.txt").is_file():
        for key, fields in _rows(table, 3):
            image, question, answer = fields
            yield Record(key, _fields(task, image, question, answer))
        return
    for file in find(root, (f"{task}/*.txt", f"{task}/questions_answers_YN/*.txt"), FILES):
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
        name = "accuracy + accuracy+"
        return Metric(name=name, value=float("nan"), count=0, maximum=TASK_MAXIMUM)
    both = sum(all(credits) for credits in whole) / len(whole)
    accuracy = sum(grade.credit for grade in counted) / len(counted)
    return Metric(
        name="accuracy + accuracy+",
        value=100 * accuracy + 100 * both,
        count=len(counted),
        maximum=TASK_MAXIMUM,
    )


def _sum(tasks: Sequence[Metric], name: str, maximum: float) -> Metric:
    asked = [task.value for task in tasks if task.count]
    count = sum(task.count for task in tasks)
    value = sum(asked) if asked else float("nan")
    return Metric(name=name, value=value, count=count, maximum=maximum)


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    kind="yes_no",
    read=read,
    grade=grade_yes_no,
    score=score,
    files=FILES,
    scoring="per task the accuracy over questions and that over images with both right, summed over"
    " the perception tasks; beside it cognition (0 to 800) and both",
)
