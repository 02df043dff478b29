"""SEED-Bench, the part about images: types 1 to 9 of its multiple-choice questions.

accuracy = 100 · right / all        also by type
"""

from __future__ import annotations

from pathlib import Path

from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.pictures import locate_image
from elva_jax.evaluation.benchmarks.tables import (
    MediaFolder,
    Record,
    as_integer,
    as_records,
    read_records,
    unique,
)
from elva_jax.utils.read import read_json

FILES = "SEED-Bench.json, SEED-Bench-image/{data_id}"
TYPES = {
    1: "Scene Understanding",
    2: "Instance Identity",
    3: "Instance Attributes",
    4: "Instance Location",
    5: "Instances Counting",
    6: "Spatial Relation",
    7: "Instance Interaction",
    8: "Visual Reasoning",
    9: "Text Understanding",
}


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions about images below a folder; see `FILES`.

    Raises:
      DataError: annotations are missing or damaged.
    """
    files = folder.find(("SEED-Bench.json", "data/*.parquet", "*.parquet"), FILES)
    records = _listed(files[0]) if files[0].suffix == ".json" else read_records(files)
    media = MediaFolder(folder.path)
    numbered = (
        (record, as_integer(record.require("question_type_id"), record.key, "question_type_id"))
        for record in records
    )
    return unique(
        (_question(record, kind, media) for record, kind in numbered if kind in TYPES),
        str(files[0]),
    )


def _listed(path: Path) -> list[Record]:
    questions = read_json(path).get("questions")
    if not isinstance(questions, list):
        raise RecordError(path.name, "has no list 'questions'")
    return as_records(questions, path.name)


def _question(record: Record, kind: int, media: MediaFolder) -> Question:
    options = [record.text(f"choice_{letter}") for letter in "abcd"]
    image = record.get("image", default=record.get("data_id"))
    return choice.choice_question(
        record.text("question_id"),
        [locate_image(image, record.key, media, ("SEED-Bench-image", "images"))],
        record.text("question"),
        options,
        choice.letter_index(record.text("answer"), options, record.key),
        categories={"type": TYPES[kind]},
    )


BENCHMARK = Benchmark(
    name="seed_image",
    title="SEED-Bench (images)",
    kind="choice",
    reader=read,
    grade=choice.grade_choice,
    score=choice.micro_scores(),
    files=FILES,
    scoring="right answers among all questions of types 1 to 9; published numbers are of the"
    " likeliest option (`likelihood_token`) or of the letter",
)
