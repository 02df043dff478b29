"""Open-ended questions about short videos: MSVD-QA, MSRVTT-QA, TGIF-QA (frames), ActivityNet-QA.

Questions and answers are in two files that are joined on `question_id`, or in one. See
`open_answers` for the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from elva_jax.data.example import Media
from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.open_answers import (
    as_sentence,
    grade_open,
    open_question,
    open_scores,
)
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_text

ACTIVITYNET_TYPES = (
    *("motion", "spatial relation", "temporal relation", "yes/no", "color"),
    *("object", "location", "number", "other"),
)
Locate = Callable[[Record, MediaFolder], Media]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where one benchmark's files are.

    Attributes:
      files: in words.
      questions: patterns of the files with the questions.
      locate: finds the video of a record.
      types: names of the numbers that the field `type` may have.
    """

    files: str
    questions: tuple[str, ...]
    locate: Locate
    types: Sequence[str] = ()


def read(layout: _Layout, folder: Folder) -> tuple[Question, ...]:
    """The questions below a folder, joined with their answers.

    Raises:
      DataError: a file is missing or damaged, or an id stands twice in one of them.
    """
    files = folder.find(layout.questions, layout.files)
    records = read_records(files)
    if not any("answer" in record.fields for record in records):
        records = _joined(records, files[0], layout, folder)
    media, prepare = MediaFolder(folder.path), partial(_question, layout)
    return unique((prepare(record, media, n) for n, record in enumerate(records)), str(files[0]))


def _joined(
    questions: Sequence[Record], path: Path, layout: _Layout, folder: Folder
) -> list[Record]:
    """Each question with the fields of its answer."""
    names = [path.with_name(path.name.replace("_q.", "_a."))]
    if names[0] == path or not names[0].is_file():
        raise DataError(
            f"{repr_path(path)}: has no answers, and there is no file of them beside it; expected"
            f" layout: {layout.files}"
        )
    found: dict[str, Record] = {}
    for record in read_records(map(folder.checked, names)):
        number = record.text("question_id")
        if number in found:
            raise RecordError(record.key, f"answers the question {shown(number)} a second time")
        found[number] = record
    joined = []
    for record in questions:
        number = record.text("question_id")
        if number not in found:
            raise RecordError(record.key, f"{names[0].name} has no answer to {shown(number)}")
        joined.append(Record(record.key, {**found[number].fields, **record.fields}))
    return joined


def _question(layout: _Layout, record: Record, media: MediaFolder, number: int) -> Question:
    ids = ("question_id", "id", "key")
    key = str(number) if record.get(*ids) is None else record.text(*ids)
    categories = {}
    if record.get("type") is not None:
        kind = record.text("type")
        names = {str(index): name for index, name in enumerate(layout.types)}
        categories["type"] = names.get(kind, kind)
    return open_question(
        key,
        [layout.locate(record, media)],
        as_sentence(record.text("question")),
        [record.text("answer")],
        categories=categories,
    )


def _named(*folders: str, prefix: str = "") -> Locate:
    """Finds videos by their name, with or without a prefix of the files."""

    def locate(record: Record, media: MediaFolder) -> Media:
        name = record.text("video_name", "video", "gif_name", "video_id")
        if prefix and not name.startswith(prefix):
            name = prefix + name
        return media.locate(name, record.key, folders=folders)

    return locate


def _msvd(root_names: Mapping[str, str], record: Record, media: MediaFolder) -> Media:
    """The original annotations have numbers, which a file maps to names."""
    name = record.text("video_name", "video", "video_id")
    name = root_names.get(name, name)
    return media.locate(name, record.key, folders=("videos", "YouTubeClips", "video"))


def _read_msvd(folder: Folder) -> tuple[Question, ...]:
    """The questions of MSVD-QA below a folder.

    Raises:
      DataError: a file is missing or damaged.
    """
    layout = _Layout(files=MSVD_FILES, questions=QUESTIONS, locate=partial(_msvd, _youtube(folder)))
    return read(layout, folder)


def _youtube(folder: Folder) -> dict[str, str]:
    """Names of videos by number, from lines such as `mv89psg6zh4_33_46 vid1`."""
    if (path := folder.file("youtube_mapping.txt")) is None:
        return {}
    pairs = (line.split() for line in read_text(path).splitlines() if line.strip())
    return {pair[-1].removeprefix("vid"): pair[0] for pair in pairs}


def _msrvtt(record: Record, media: MediaFolder) -> Media:
    name = record.text("video_name", "video", "video_id")
    name = f"video{name}" if name.isdecimal() else name
    return media.locate(name, record.key, folders=("all", "videos", "video"))


QUESTIONS = ("test_q.json", "test_q.jsonl", "test_qa.json", "test*.parquet", "data/test*.parquet")
MSVD_FILES = (
    "test_q.json and test_a.json, or test_qa.json and youtube_mapping.txt; videos/{video_name}.avi"
)
MSRVTT = _Layout(
    files="test_q.json and test_a.json, or test_qa.json; all/{video_name}.mp4",
    questions=QUESTIONS,
    locate=_msrvtt,
)
TGIF = _Layout(
    files="test_q.json and test_a.json, or Test_frameqa_question.csv; mp4/{video_name}.mp4 or"
    " gifs/{gif_name}.gif",
    questions=("test_q.json", "Test_frameqa_question.[ct]sv", *QUESTIONS[2:]),
    locate=_named("mp4", "gifs", "videos"),
    types=("object", "number", "color", "location"),
)
ACTIVITYNET = _Layout(
    files="test_q.json and test_a.json; all_test/v_{video_name}.mp4",
    questions=QUESTIONS,
    locate=_named("all_test", "videos", prefix="v_"),
    types=ACTIVITYNET_TYPES,
)


def _benchmark(
    name: str, title: str, files: str, read_questions: Callable[[Folder], Sequence[Question]]
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        kind="open",
        reader=read_questions,
        grade=grade_open,
        score=open_scores,
        max_new_tokens=32,
        judge="qa",
        files=files,
        scoring="without a judge exact match and token F1, which are lower than published numbers;"
        " with one its accuracy and its mean score of 0 to 5",
    )


BENCHMARKS = (
    _benchmark("msvd_qa", "MSVD-QA", MSVD_FILES, _read_msvd),
    _benchmark("msrvtt_qa", "MSRVTT-QA", MSRVTT.files, partial(read, MSRVTT)),
    _benchmark("tgif_qa", "TGIF-QA (frames)", TGIF.files, partial(read, TGIF)),
    _benchmark("activitynet_qa", "ActivityNet-QA", ACTIVITYNET.files, partial(read, ACTIVITYNET)),
)
