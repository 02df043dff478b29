"""EgoSchema: 5,031 questions about egocentric videos; the answers of 500 are public.

    accuracy = right / all        over the questions with a public answer

The answers to all questions go to the benchmark's server as one file; see `submission`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Question
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.tables import (
    MediaFolder,
    Record,
    as_integer,
    read_records,
    unique,
)
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json

FILES = "questions.json, subset_answers.json with the public answers, videos/{q_uid}.mp4"
OPTIONS = 5
UNANSWERED = -1  # in a submission


def read(folder: Folder) -> tuple[Question, ...]:
    """All questions below a folder; see `FILES`. Those without a public answer are not scored.

    Raises:
      DataError: questions are missing, or a file is damaged.
    """
    patterns = ("questions.json", "MC/*.parquet", "*.parquet")
    files = folder.find(patterns, FILES)
    answers = _public_answers(folder) if files[0].suffix == ".json" else {}
    media = MediaFolder(folder.path)
    return unique(
        (_question(record, answers, media) for record in read_records(files)), str(files[0])
    )


def read_subset(folder: Folder) -> tuple[Question, ...]:
    """The questions below a folder that have a public answer.

    Raises:
      DataError: as `read`, or there are no public answers.
    """
    if files := folder.glob("[Ss]ubset/*.parquet"):
        media = MediaFolder(folder.path)
        questions: Sequence[Question] = unique(
            (_question(record, {}, media) for record in read_records(files)), str(files[0])
        )
    else:
        questions = read(folder)
    if not (public := tuple(q for q in questions if q.answer is not None)):
        missing = repr_path(folder.path / "subset_answers.json")
        raise DataError(f"{missing}: no public answers; expected layout: {FILES}")
    return public


def _public_answers(folder: Folder) -> Mapping[str, int]:
    if (path := folder.file("subset_answers.json")) is None:
        return {}
    found = read_json(path)
    return {uid: as_integer(value, path.name, shown(uid)) for uid, value in found.items()}


def _question(record: Record, answers: Mapping[str, int], media: MediaFolder) -> Question:
    uid = record.text("q_uid", "video_idx")
    if record.get("option") is not None:  # a copy for lmms-eval
        options = record.texts("option")
    else:
        options = tuple(record.text(f"option {k}") for k in range(OPTIONS))
    answer = answers.get(uid, record.get("answer"))
    hidden = answer is None or str(answer).strip().lower() in ("", "none")
    return choice.choice_question(
        uid,
        [media.locate(uid, record.key, folders=("videos", "good_clips_git"))],
        record.text("question"),
        options,
        None if hidden else as_integer(answer, record.key, "answer"),
    )


def submission(grades: Sequence[Grade]) -> dict[str, int]:
    """The chosen option of every question, by its name, as the benchmark's server wants it."""
    return {
        grade.response.question.key: grade.parsed if isinstance(grade.parsed, int) else UNANSWERED
        for grade in grades
    }


BENCHMARK = Benchmark(
    name="egoschema",
    title="EgoSchema",
    kind="choice",
    reader=read,
    grade=choice.grade_choice,
    score=choice.micro_scores(maximum=1.0),
    files=FILES,
    scoring="right answers among the questions with a public answer",
    submission=submission,
)
SUBSET = Benchmark(
    name="egoschema_subset",
    title="EgoSchema (subset)",
    kind="choice",
    reader=read_subset,
    grade=choice.grade_choice,
    score=choice.micro_scores(maximum=1.0),
    files=FILES,
    scoring="right answers among the questions with a public answer, which alone are asked",
)
