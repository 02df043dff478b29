"""MSVD-QA, MSRVTT-QA and TGIF-QA (frames) as documents for lmms-eval, which lacks them.

Two layouts are read: the questions and answers in files of their own, joined on `question_id`
(`test_q.json`, `test_a.json`), and the files of the data sets' authors.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, DataError, RecordError
from elva_jax.evaluation.answers import exact_match, normalize
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, find, read_records
from elva_jax.evaluation.lmms import judging
from elva_jax.utils.read import read_text

FOLDERS = ("videos", "video", "mp4", "gifs", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set is.

    Attributes:
      variable: the environment variable with its folder.
      whole: files with questions and answers together.
      video: the name of the video with a number, such as vid{}.
    """

    variable: str
    whole: tuple[str, ...]
    video: str = "{}"

    @property
    def files(self) -> str:
        """The layout in words."""
        return f"test_q.json and test_a.json, or {self.whole[0]}; videos/ beside them"


LAYOUTS: Mapping[str, Layout] = {
    "msvd_qa": Layout(
        variable="MSVD_QA_ROOT", whole=("test_qa.json", "*/test_qa.json"), video="vid{}"
    ),
    "msrvtt_qa": Layout(
        variable="MSRVTT_QA_ROOT", whole=("test_qa.json", "*/test_qa.json"), video="video{}"
    ),
    "tgif_qa": Layout(
        variable="TGIF_QA_ROOT", whole=("Test_frameqa_question.csv", "*/Test_frameqa_question.csv")
    ),
}


def root_of(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of a data set, from its environment variable; None where that is not set."""
    found = environ.get(LAYOUTS[name].variable)
    return Path(found).expanduser() if found else None


def read_docs(name: str, root: Path) -> list[dict[str, str]]:
    """The test set below a folder: question_id, video (a path), question and answer.

    Raises:
      DataError: files are missing or damaged, or a question has no answer.
    """
    layout, media = LAYOUTS[name], MediaFolder(root)
    docs = []
    for record, answer in _pairs(layout, root):
        video = record.text("video_name", "gif_name", "video", "video_id")
        if video.isdecimal() and record.get("video_name") is None:
            video = layout.video.format(video)
        docs.append(
            {
                "question_id": record.text("question_id", "id", "key"),
                "video": str(
                    media.locate(_mapped(root, video), record.key, folders=FOLDERS).source
                ),
                "question": record.text("question"),
                "answer": answer,
            }
        )
    return docs


def _pairs(layout: Layout, root: Path) -> Iterator[tuple[Record, str]]:
    """Each question with its answer."""
    patterns = ("test_q.json", "*/test_q.json", *layout.whole)
    (file, *_) = find(root, patterns, layout.files)
    if file.name != "test_q.json":
        for record in _whole(file):
            yield record, record.text("answer")
        return
    answers = {
        record.text("question_id"): record
        for record in read_records([file.with_name("test_a.json")])
    }
    for record in read_records([file]):
        key = record.text("question_id")
        if key not in answers:
            raise RecordError(record.key, f"the question {key[:60]!r} has no row in test_a.json")
        yield record, answers[key].text("answer")


def _whole(file: Path) -> list[Record]:
    if file.suffix != ".csv":
        return read_records([file])
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter="\t")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{file}: is not a tab-separated table ({error})") from None
    return [Record(f"{file.name}[{n}]", {"key": str(n), **row}) for n, row in enumerate(rows)]


def _mapped(root: Path, video: str) -> str:
    """The name that MSVD's `youtube_mapping.txt` has for a numbered video."""
    path = root / "youtube_mapping.txt"
    if not re.fullmatch("vid[0-9]+", video) or not path.is_file():
        return video
    lines = (line.split() for line in read_text(path).splitlines())
    return next((words[0] for words in lines if words[1:] == [video]), video)


def prompt(doc: Mapping[str, Any], given: Mapping[str, Any] | None) -> str:
    """The question with a question mark, between the task's texts."""
    given, question = given or {}, doc["question"].strip().rstrip("?").rstrip()
    return f"{given.get('pre_prompt', '')}{question}?{given.get('post_prompt', '')}"


def grade(doc: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Exact match and token F1, and a judge's verdict where one is configured."""
    found: dict[str, Any] = {
        "exact_match": float(exact_match(answer, doc["answer"])),
        "token_f1": token_f1(answer, doc["answer"]),
    }
    if (judge := judging.configured()) is not None:
        verdict = judging.ask(judge, doc["question"], doc["answer"], answer)
        found |= dict.fromkeys(("judge_accuracy", "judge_score", "judge_failures"), verdict)
    return found


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the normalized words."""
    said, wanted = normalize(answer).split(), normalize(reference).split()
    shared = sum(min(said.count(word), wanted.count(word)) for word in set(said))
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def judge_accuracy(verdicts: Sequence[judging.Verdict | None]) -> float:
    """The share of answers judged right, in percent of all; a failure is not right."""
    right = [verdict is not None and verdict.right for verdict in verdicts]
    return 100 * sum(right) / max(len(right), 1)


def judge_score(verdicts: Sequence[judging.Verdict | None]) -> float:
    """The mean score from 0 to 5 of those that were judged."""
    scores = [verdict.score for verdict in verdicts if verdict is not None]
    return sum(scores) / len(scores) if scores else float("nan")


def judge_failures(verdicts: Sequence[judging.Verdict | None]) -> int:
    """The number of answers without a verdict."""
    return sum(verdict is None for verdict in verdicts)


def require_root(name: str) -> Path:
    """The folder of a data set.

    Raises:
      ConfigError: its variable is not set.
    """
    root = root_of(name)
    if root is None:
        layout = LAYOUTS[name]
        raise ConfigError(
            f"{layout.variable} is not set: it names the folder of {name}, with {layout.files}"
        )
    return root
