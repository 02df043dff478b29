"""POPE: whether an object is in an image, with three ways of choosing the objects that are not.

precision = yes and right / answered yes        recall = yes and right / all whose label is yes
F1 = 2 · precision · recall / (precision + recall)
yes-rate = answered yes / all                   of the answers, not of the labels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores, Tally
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.pictures import locate_image
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.evaluation.benchmarks.yes_no import YES, grade_yes_no, yes_no_question

FILES = "coco_pope_{random,popular,adversarial}.json (JSONL), val2014/{image}"
KINDS = ("random", "popular", "adversarial")
NAMES = ("coco_pope_{}.json*", "coco/coco_pope_{}.json*", "Full/{}-*.parquet")


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions of all three kinds below a folder; see `FILES`.

    Raises:
      DataError: annotations are missing or damaged.
    """
    media = MediaFolder(folder.path)
    if hub := folder.glob("data/test-*.parquet"):
        files = {"": hub}
    else:  # ids begin again in every file
        files = {kind: folder.find([name.format(kind) for name in NAMES], FILES) for kind in KINDS}
    return unique(
        (
            _question(record, kind or record.text("category"), media)
            for kind, paths in files.items()
            for record in read_records(paths)
        ),
        str(folder.path),
    )


def _question(record: Record, kind: str, media: MediaFolder) -> Question:
    return yes_no_question(
        f"{kind}/{record.text('question_id')}",
        [
            locate_image(
                record.get("image", "image_source"), record.key, media, ("val2014", "images")
            )
        ],
        record.text("text", "question"),
        record.text("label", "answer"),
        categories={"category": kind},
    )


def score(grades: Sequence[Grade]) -> Scores:
    """F1 of all questions and by kind; accuracy, precision, recall and the yes-rate beside it."""
    by_kind: dict[str, list[Grade]] = {kind: [] for kind in KINDS}
    for grade in grades:
        by_kind.setdefault(grade.response.question.categories["category"], []).append(grade)
    main, *others = _numbers(grades)
    return Scores(
        main=main,
        others=tuple(others),
        categories={"category": {kind: _numbers(of)[0] for kind, of in by_kind.items()}},
        statuses=choice.statuses(grades),
    )


def _numbers(grades: Sequence[Grade]) -> list[Metric]:
    """F1, accuracy, precision, recall and yes-rate; a quotient of nothing is 0."""
    counted = [grade for grade in grades if grade.status != "no_reference"]
    yes = [grade for grade in counted if grade.parsed == YES]
    positive = [grade for grade in counted if grade.response.question.answer == YES]
    right = sum(grade.status == "right" for grade in yes)
    precision, recall = _quotient(right, len(yes)), _quotient(right, len(positive))
    values = {
        "f1": _quotient(2 * precision * recall, precision + recall),
        "accuracy": _quotient(sum(grade.credit for grade in counted), len(counted)),
        "precision": precision,
        "recall": recall,
        "yes-rate": _quotient(len(yes), len(counted)),
    }
    return [
        Metric(name=name, value=100 * value if counted else float("nan"), count=len(counted))
        for name, value in values.items()
    ]


def tally(grades: Sequence[Grade]) -> Tally:
    """The same numbers from counts of each kind: all, right, answered yes, label yes, both."""
    found = (grade.response.question.categories["category"] for grade in grades)
    kinds = list(dict.fromkeys((*KINDS, *found)))
    values = np.zeros((len(grades), len(kinds), 5))
    for row, grade in zip(values, grades, strict=True):
        if grade.status != "no_reference":
            yes, positive = grade.parsed == YES, grade.response.question.answer == YES
            right = yes and grade.status == "right"
            kind = kinds.index(grade.response.question.categories["category"])
            row[kind] = 1, grade.credit, yes, positive, right

    def numbers(sums: np.ndarray) -> dict[tuple[str, str, str], np.ndarray]:
        of_kinds = sums.reshape(len(sums), len(kinds), 5)
        found = {("", "", name): of for name, of in _of_counts(of_kinds.sum(1)).items()}
        for place, kind in enumerate(kinds):
            found["category", kind, "f1"] = _of_counts(of_kinds[:, place])["f1"]
        return found

    return Tally(values=values.reshape(len(grades), -1), numbers=numbers)


def _of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """As `_numbers`, float [R] of counts [R, 5]."""

    def quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)

    asked, credit, yes, positive, right = counts.T
    precision, recall = quotient(right, yes), quotient(right, positive)
    values = {
        "f1": quotient(2 * precision * recall, precision + recall),
        "accuracy": quotient(credit, asked),
        "precision": precision,
        "recall": recall,
        "yes-rate": quotient(yes, asked),
    }
    return {name: np.where(asked > 0, 100 * value, np.nan) for name, value in values.items()}


def _quotient(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    kind="yes_no",
    reader=read,
    grade=grade_yes_no,
    score=score,
    tally=tally,
    files=FILES,
    scoring="F1 of the answer yes over all three kinds; beside it accuracy, precision, recall and"
    " the share of answers that are yes",
)
