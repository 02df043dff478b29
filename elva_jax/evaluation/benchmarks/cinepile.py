"""CinePile: 4,941 questions about film scenes with their subtitles, five options each.

accuracy = 100 · right / all        also of the hard split
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qs, urlparse

from elva_jax.errors import RecordError
from elva_jax.evaluation import answers
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Question, Response, Scores
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.parsing import parse_choice
from elva_jax.evaluation.benchmarks.tables import (
    MediaFolder,
    Record,
    as_integer,
    read_records,
    unique,
)
from elva_jax.utils.numbers import shown

FILES = "data/test-*.parquet or test.json with the questions, videos/{videoID}.mp4"
ANNOTATIONS = (
    *("data/test*.parquet", "v2/test*.parquet", "test*.parquet", "*.parquet"),
    *("test.json", "cinepile.json", "test.jsonl"),
)
_LABELED = re.compile(r"(?:answer\W{1,8})?\(?([A-E])[).][ \t]{0,8}(\S.{0,1000})", re.IGNORECASE)


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions below a folder; see `FILES`. The records' own subtitles precede each.

    Raises:
      DataError: annotations are missing or damaged.
    """
    files = folder.find(ANNOTATIONS, FILES)
    media = MediaFolder(folder.path)
    return unique(
        (_question(record, k, media) for k, record in enumerate(read_records(files))), str(files[0])
    )


def _question(record: Record, number: int, media: MediaFolder) -> Question:
    options = record.texts("choices")
    subtitles = record.text("subtitles") if record.get("subtitles") not in (None, "") else ""
    video = _video_id(record)
    return choice.choice_question(
        f"{video}/{number}",
        [media.locate(video, record.key, folders=("videos", "data", "yt_videos"))],
        record.text("question"),
        options,
        _answer(record, options),
        context=f"Subtitles of the scene:\n{subtitles}" if subtitles else "",
        categories={"category": " ".join(record.text("question_category").split())},
        extra={"hard": str(record.get("hard_split", default=False)).lower() == "true"},
    )


def _video_id(record: Record) -> str:
    if record.get("videoID"):
        return record.text("videoID")
    link = record.text("yt_clip_link")
    try:
        url = urlparse(link)
        found = parse_qs(url.query, max_num_fields=50).get("v") or [url.path.rsplit("/", 1)[-1]]
    except ValueError:
        found = [""]
    if not found[0]:
        raise RecordError(record.key, f"its link {shown(link)} names no video")
    return found[0]


def _answer(record: Record, options: Sequence[str]) -> int:
    if (position := record.get("answer_key_position")) is not None:
        return as_integer(position, record.key, "answer_key_position")
    return choice.text_index(record.text("answer_key"), options, record.key)


def grade(response: Response) -> Grade:
    """Compares the chosen option; a letter with a text that is not its option's is unparsed."""
    question, text = response.question, response.text
    parsed = None if text is None else parse_choice(text, question.options)
    labeled = _LABELED.match(re.sub(r"[*_`]", "", text or "").lstrip())
    if parsed is not None and labeled and ord(labeled[1].upper()) - ord("A") == parsed:
        said, option = answers.normalize(labeled[2]), answers.normalize(question.options[parsed])
        if said and option and not said.startswith(option):
            parsed = None
    return choice.grade_option(response, parsed)


def score(grades: Sequence[Grade]) -> Scores:
    """The accuracy over all questions, and over the hard split."""
    hard = [grade for grade in grades if grade.response.question.extra.get("hard")]
    return Scores(
        main=choice.accuracy(grades),
        others=(choice.accuracy(hard, name="accuracy (hard split)"),),
        categories=choice.by_category(grades),
        statuses=choice.statuses(grades),
    )


BENCHMARK = Benchmark(
    name="cinepile",
    title="CinePile",
    kind="choice",
    reader=read,
    grade=grade,
    score=score,
    files=FILES,
    scoring="right answers among all questions; beside it the hard split",
)
