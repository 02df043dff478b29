"""NExT-QA, multiple choice: causal, temporal and descriptive questions with five options.

accuracy = right / all        also by type and by group of types
"""

from __future__ import annotations

from collections.abc import Mapping

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

FILES = (
    "test.csv (or val.csv), map_vid_vidorID.json,"
    " NExTVideo/{path of the map}.mp4 or videos/{video}.mp4"
)
GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}  # first letters of the types
OPTIONS = 5


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions below a folder; see `FILES`. Without the map, videos have their own names.

    Raises:
      DataError: annotations are missing or damaged.
    """
    names = ("test.csv", "nextqa/test.csv", "val.csv", "nextqa/val.csv", "MC/*.parquet")
    files = folder.find(names, FILES)
    path = files[0].with_name("map_vid_vidorID.json")
    places = read_json(folder.checked(path)) if path.exists() else {}
    media = MediaFolder(folder.path)
    return unique(
        (_question(record, places, media) for record in read_records(files)), str(files[0])
    )


def _question(record: Record, places: Mapping[str, object], media: MediaFolder) -> Question:
    video, kind = record.text("video", "video_id"), record.text("type")
    place = str(places.get(video, video))
    return choice.choice_question(
        f"{video}_{record.text('qid')}",
        [media.locate(place, record.key, folders=("NExTVideo", "videos", "video"))],
        record.text("question"),
        [record.text(f"a{k}") for k in range(OPTIONS)],
        as_integer(record.require("answer"), record.key, "answer"),
        categories={"type": kind, "group": GROUPS.get(kind[:1].upper(), "other")},
    )


BENCHMARK = Benchmark(
    name="nextqa",
    title="NExT-QA (multiple choice)",
    kind="choice",
    reader=read,
    grade=choice.grade_choice,
    score=choice.micro_scores(maximum=1.0),
    files=FILES,
    scoring="right answers among all questions",
)
