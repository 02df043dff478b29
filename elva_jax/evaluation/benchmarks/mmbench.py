"""MMBench: multiple choice about images, each question asked again with its options rotated.

A question is right if the answers to all of its rotations are. Rotations have the same
`index % 1000000`.

circular accuracy = 100 · questions with every rotation right / questions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.pictures import decode_base64, locate_image
from elva_jax.evaluation.benchmarks.tables import (
    MediaFolder,
    Record,
    as_integer,
    read_records,
    unique,
)

FILES = "mmbench_dev*.tsv (or MMBench_DEV_EN*.tsv) with the images in base64, or en/dev-*.parquet"
ANNOTATIONS = (
    *("mmbench_dev_en*.tsv", "mmbench_dev*.tsv", "MMBench_DEV_EN.tsv", "MMBench_DEV_EN*.tsv"),
    *("en/dev-*.parquet", "data/dev-*.parquet", "dev*.parquet", "*.tsv", "*.parquet"),
)
ROTATION = 1_000_000  # added to the index with every rotation
SHORTEST_IMAGE = 64  # characters; a shorter text is the index of the row with the image
AXES = ("category", "L2-category")
ABSENT = "nan"  # an option or hint that a question does not have, as some tables write it


def read(folder: Folder) -> tuple[Question, ...]:
    """All rotations of all questions below a folder; see `FILES`. The first fitting file is read.

    Raises:
      DataError: annotations are missing or damaged.
    """
    files = folder.find(ANNOTATIONS, FILES)
    if files[0].suffix == ".tsv":
        files = files[:1]
    records = read_records(files)
    images = _Images(records, MediaFolder(folder.path))
    return unique((_question(record, images) for record in records), str(files[0]))


class _Images:
    """Images of rows, which may refer to those of other rows by index."""

    def __init__(self, records: Sequence[Record], media: MediaFolder):
        self.media = media
        self.by_index = {str(record.get("index")).strip(): record for record in records}

    def of(self, record: Record) -> Media:
        value = record.require("image")
        if isinstance(value, str) and len(value.strip()) <= SHORTEST_IMAGE:
            other = self.by_index.get(value.strip())
            value = other.get("image") if other else value
            if isinstance(value, str) and len(value.strip()) <= SHORTEST_IMAGE:
                raise RecordError(record.key, "its image is neither base64 nor the index of a row")
        if isinstance(value, str):
            return Media(decode_base64(value.strip(), record.key), "image")
        return locate_image(value, record.key, self.media)


def _question(record: Record, images: _Images) -> Question:
    index = as_integer(record.require("index"), record.key, "index")
    options = list(takewhile(bool, (_given(record, letter) for letter in "ABCD")))
    answer = _given(record, "answer")
    return choice.choice_question(
        str(index),
        [images.of(record)],
        record.text("question"),
        options,
        choice.letter_index(answer, options, record.key) if answer else None,
        context=_given(record, "hint"),
        categories={axis: text for axis in AXES if (text := _given(record, axis))},
        extra={"group": str(index % ROTATION), "unrotated": index < ROTATION},
    )


def _given(record: Record, name: str) -> str:
    """The text of a field; "" where the question does not have it."""
    value = record.get(name, name.lower(), default="")
    text = str(value).strip()
    return "" if text.lower() == ABSENT else text


def score(grades: Sequence[Grade]) -> Scores:
    """Circular accuracy, also by category, and the accuracy of the unrotated questions alone."""
    groups: dict[str, list[Grade]] = {}
    for grade in grades:
        if grade.status != "no_reference":
            groups.setdefault(grade.response.question.extra["group"], []).append(grade)
    whole = [group for group in groups.values() if any(map(_is_unrotated, group))]
    unrotated = [grade for group in whole for grade in group if _is_unrotated(grade)]
    return Scores(
        main=_circular(whole),
        others=(choice.accuracy(unrotated, name="accuracy without rotations"),),
        categories=_by_category(whole),
        statuses=choice.statuses(grades),
    )


def _is_unrotated(grade: Grade) -> bool:
    return bool(grade.response.question.extra["unrotated"])


def _circular(groups: Sequence[Sequence[Grade]]) -> Metric:
    right = sum(all(grade.status == "right" for grade in group) for group in groups)
    value = 100 * right / len(groups) if groups else float("nan")
    return Metric(name="circular accuracy", value=value, count=len(groups))


def _by_category(groups: Sequence[Sequence[Grade]]) -> Mapping[str, Mapping[str, Metric]]:
    found: dict[str, dict[str, list[Sequence[Grade]]]] = {}
    for group in groups:
        main = next(filter(_is_unrotated, group))
        for axis, value in main.response.question.categories.items():
            found.setdefault(axis, {}).setdefault(value, []).append(group)
    return {
        axis: {value: _circular(of_value) for value, of_value in values.items()}
        for axis, values in found.items()
    }


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench (English, dev)",
    kind="choice",
    reader=read,
    grade=choice.grade_choice,
    score=score,
    files=FILES,
    scoring="questions whose rotations are all right, among all questions",
)
