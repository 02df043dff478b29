"""GQA: compositional questions about images, answered with a word or a short phrase.

accuracy = 100 · exact matches / all        case, punctuation and white space do not count
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from pathlib import Path

from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Question, Response, not_asked
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.open_answers import open_question
from elva_jax.evaluation.benchmarks.pictures import locate_image
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json

FILES = "testdev_balanced_questions.json, images/{imageId}.jpg"
ANNOTATIONS = (
    *("testdev_balanced_questions.json", "questions/testdev_balanced_questions.json"),
    *("testdev_balanced_instructions/*.parquet", "testdev_balanced_questions.jsonl"),
)
AXES = ("structural", "semantic")  # of a question's types
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions of the balanced test-dev split below a folder; see `FILES`.

    Raises:
      DataError: annotations are missing or damaged.
    """
    files = folder.find(ANNOTATIONS, FILES)
    records = _by_id(files[0]) if files[0].suffix == ".json" else iter(read_records(files))
    images = _Images(folder)
    return unique((_question(record, images) for record in records), str(files[0]))


def _by_id(path: Path) -> Iterator[Record]:
    """One record per question of a file that has an object of questions by id."""
    for number, fields in read_json(path).items():
        key = f"{path.name}[{shown(number)}]"
        if not isinstance(fields, dict):
            raise RecordError(key, "is no object with fields")
        yield Record(key, {"id": number, **fields})


class _Images:
    """Images by their id, in Parquet files of the hub or as files."""

    def __init__(self, folder: Folder):
        self.media = MediaFolder(folder.path)
        files = folder.glob("testdev_balanced_images/*.parquet")
        self.rows = {record.text("id"): record for record in read_records(files)}

    def of(self, name: str, key: str) -> Media:
        if name in self.rows:
            row = self.rows[name]
            return locate_image(row.require("image"), row.key, self.media)
        return self.media.locate(name, key, "image", ("images", "gqa/images"))


def _question(record: Record, images: _Images) -> Question:
    types = record.get("types")
    types = Record(record.key, types if isinstance(types, Mapping) else {})
    categories = {axis: types.text(axis) for axis in AXES if types.get(axis)}
    return open_question(
        record.text("id", "question_id"),
        [images.of(record.text("imageId", "image_id"), record.key)],
        record.text("question"),
        [record.text("answer")] if record.get("answer") is not None else [],
        categories=categories,
    )


def fold(text: str) -> str:
    """An answer as it is compared: `" Yes. "` -> `"yes"`. Articles count, hyphens are deleted."""
    return " ".join(text.translate(_PUNCTUATION).casefold().split())


def grade(response: Response) -> Grade:
    """Compares a written answer with the reference by `fold`."""
    said, references = fold(response.text or ""), response.question.references
    if response.error:
        return not_asked(response)
    if not references:
        return Grade(response=response, parsed=said, status="no_reference", credit=0.0)
    if not said:
        return Grade(response=response, parsed=None, status="unparsed", credit=0.0)
    right = said in map(fold, references)
    return Grade(
        response=response, parsed=said, status="right" if right else "wrong", credit=float(right)
    )


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA (balanced test-dev)",
    kind="open",
    reader=read,
    grade=grade,
    score=choice.micro_scores(),
    files=FILES,
    scoring="answers that are equal to the reference but for case and punctuation, among all",
)
