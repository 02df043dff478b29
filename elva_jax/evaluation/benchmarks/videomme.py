"""Video-MME: 2,700 questions about 900 videos of three durations, with and without subtitles.

accuracy = 100 · right / all        not the mean over durations
"""

from __future__ import annotations

import dataclasses
import html
import os
import re
from collections.abc import Iterator
from pathlib import Path

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.benchmarks.choice import (
    choice_question,
    grade_choice,
    letter_index,
    micro_scores,
)
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.utils.failures import repr_path
from elva_jax.utils.read import read_bytes

FILES = (
    "videomme/*.parquet or videomme.json with the questions, data/{videoID}.mp4,"
    " subtitle/{videoID}.srt for videomme_subtitles"
)
ANNOTATIONS = (
    *("videomme/*.parquet", "videomme.json", "Video-MME.json", "videomme.jsonl", "test.json"),
    *("*.parquet", "data/*.parquet"),
)
SCORING = "right answers among all questions, not the mean over durations"
AXES = ("duration", "domain", "sub_category", "task_type")
CUES = 32  # subtitles shown of a video, evenly spaced: a film's would fill the prompt
_TIME = re.compile(r"\d{1,3}:\d\d:\d\d[,.]\d{1,3} *--> *\d{1,3}:\d\d:\d\d[,.]\d{1,3}")
_TAG = re.compile(r"</?(?:[ibu]|font[^<>\n]{0,80})>|\{\\[^{}\n]{0,80}\}", re.IGNORECASE)


def read(folder: Folder, *, subtitles: bool = False) -> tuple[Question, ...]:
    """The questions below a folder.

    Args:
      folder: the folder; see `FILES`.
      subtitles: whether `CUES` of the subtitles stand before each question.

    Raises:
      DataError: annotations, or all subtitles, are missing or damaged.
    """
    files = folder.find(ANNOTATIONS, FILES)
    cues = folder.path / "subtitle"
    if subtitles and not cues.is_dir():
        raise DataError(f"{repr_path(cues)}: no such folder; expected layout: {FILES}")
    media = MediaFolder(folder.path)
    shown = _Subtitles(folder) if subtitles else None
    return unique(
        (_question(record, media, shown) for record in _flat(read_records(files))), str(files[0])
    )


def _flat(records: list[Record]) -> Iterator[Record]:
    """One record per question; the official result files have one per video."""
    for record in records:
        nested = record.get("questions")
        if nested is None:
            yield record
            continue
        if not isinstance(nested, list) or not all(isinstance(item, dict) for item in nested):
            raise RecordError(record.key, "'questions' is no list of objects")
        yield from (Record(record.key, {**record.fields, **item}) for item in nested)


def _question(record: Record, media: MediaFolder, subtitles: _Subtitles | None) -> Question:
    video = record.text("videoID", "video_id")
    options = record.texts("options")
    context = problem = ""
    if subtitles:
        cues, problem = subtitles.of(video, record.key)
        context = f"Subtitles of the video:\n{cues}"
    question = choice_question(
        record.text("question_id"),
        [media.locate(video, record.key, folders=("data", "videos", "video"))],
        record.text("question"),
        options,
        letter_index(record.text("answer"), options, record.key),
        context=context,
        categories={axis: record.text(axis) for axis in AXES if record.get(axis)},
    )
    return dataclasses.replace(question, problem=problem)


class _Subtitles:
    """The subtitles of videos, each file read once."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._found: dict[str, tuple[str, str]] = {}

    def of(self, video: str, key: str) -> tuple[str, str]:
        """The cues of a video; and why they may not be read, or ""."""
        if video not in self._found:
            if "/" in video or "\0" in video:
                raise RecordError(key, "'videoID' is no file name")
            path = self.folder.path / "subtitle" / f"{video}.srt"
            problem = self.folder.refusal(path)
            # A fifth of the videos has none. A name that is too long is no file, either.
            cues = read_cues(path) if not problem and os.path.isfile(path) else []
            self._found[video] = "\n".join(spaced(cues, CUES)) or "(none)", problem
        return self._found[video]


def read_cues(path: Path) -> list[str]:
    """The texts of an SRT file in order, without times and markup.

    Raises:
      DataError: the file cannot be read.
    """
    cues: list[list[str]] = []
    text = read_bytes(path).decode("utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    for number, line in enumerate(lines):
        if _TIME.match(line):
            cues.append([])
        elif cues and line and not (line.isdecimal() and _begins_cue(lines, number)):
            cues[-1].append(html.unescape(_TAG.sub("", line)).strip())
    texts = (" ".join(filter(None, cue)) for cue in cues)
    return [text for text in texts if text]


def _begins_cue(lines: list[str], number: int) -> bool:
    """Whether a line is the number of a cue, before its time."""
    return number + 1 < len(lines) and bool(_TIME.match(lines[number + 1]))


def spaced(cues: list[str], count: int) -> list[str]:
    """At most `count` cues, evenly spaced from the first to the last."""
    if len(cues) <= count:
        return cues
    return [cues[round(k * (len(cues) - 1) / (count - 1))] for k in range(count)]


BENCHMARK = Benchmark(
    name="videomme",
    title="Video-MME",
    kind="choice",
    reader=read,
    grade=grade_choice,
    score=micro_scores(),
    files=FILES,
    scoring=SCORING,
)


def _read_with_subtitles(folder: Folder) -> tuple[Question, ...]:
    return read(folder, subtitles=True)


WITH_SUBTITLES = Benchmark(
    name="videomme_subtitles",
    title="Video-MME (subtitles)",
    kind="choice",
    reader=_read_with_subtitles,
    grade=grade_choice,
    score=micro_scores(),
    files=FILES,
    scoring=SCORING,
)
