"""TempCompass: what happens when, in four tasks, which are four benchmarks.

    multi_choice, yes_no, caption_matching      accuracy = 100 · right / all
    captioning                                  named option = 100 · captions with the words of the
                                                right option and of no other / all
                                                token F1 of a caption and the right option

The paper has a language model answer a multiple-choice question from the caption. Here a caption
that has the words of exactly one of the options is graded; every other one is "unjudged", so what
is measured has a name of its own, is a lower bound, and is comparable with no published accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import (
    Benchmark,
    Grade,
    Question,
    Response,
    Scores,
    not_asked,
)
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.open_answers import F1, detail_mean, token_f1
from elva_jax.evaluation.benchmarks.parsing import contained_option
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique
from elva_jax.evaluation.benchmarks.yes_no import grade_yes_no, yes_no_question
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json

NAMED = "named option"  # the main number of captioning
FILES = "questions/{task}.json, videos/{video_id}.mp4"
Build = Callable[[Record, str, MediaFolder], Question]


def read(task: str, build: Build, folder: Folder) -> tuple[Question, ...]:
    """The questions of one task below a folder; see `FILES`.

    Raises:
      DataError: the task's file is missing or damaged.
    """
    records = _records(folder, task)
    if task == "captioning" and records and records[0].get("mc_question") is None:
        records = _with_choices(records, _records(folder, "multi-choice"))
    media = MediaFolder(folder.path)
    numbers: dict[tuple[str, str], int] = {}
    questions = []
    for record in records:
        group = record.text("video_id"), record.text("dim")
        numbers[group] = numbers.get(group, -1) + 1
        questions.append(build(record, "/".join((*group, str(numbers[group]))), media))
    return unique(questions, f"{task} below {repr_path(folder.path)}")


def _records(folder: Folder, task: str) -> list[Record]:
    patterns = (f"questions/{task}.json", f"{task}.json", f"{task}/*.parquet")
    files = folder.find(patterns, FILES.format(task=task, video_id="{video_id}"))
    return list(_by_video(files[0])) if files[0].suffix == ".json" else read_records(files)


def _with_choices(captions: Sequence[Record], choices: Sequence[Record]) -> list[Record]:
    """Records of captions with the first multiple-choice question about the same aspect."""
    first: dict[tuple[str, str], Record] = {}
    for record in choices:
        first.setdefault((record.text("video_id"), record.text("dim")), record)
    joined = []
    for record in captions:
        group = record.text("video_id"), record.text("dim")
        if group not in first:
            raise RecordError(record.key, "has no multiple-choice question about the same aspect")
        asked = first[group]
        about = {"mc_question": asked.text("question"), "mc_answer": asked.text("answer")}
        joined.append(Record(record.key, {**record.fields, **about}))
    return joined


def _by_video(path: Path) -> Iterator[Record]:
    """One record per question of a file that has an object per video, with a list per aspect."""
    for video, aspects in read_json(path).items():
        key = f"{path.name}[{shown(video)}]"
        if not isinstance(aspects, dict):
            raise RecordError(key, "is no object of aspects")
        for aspect, items in aspects.items():
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise RecordError(key, f"its aspect {shown(aspect)} is no list of objects")
            for number, item in enumerate(items):
                fields = {"video_id": video, "dim": aspect, **item}
                yield Record(f"{key}[{shown(aspect)}][{number}]", fields)


def _video(record: Record, media: MediaFolder) -> list[Media]:
    return [media.locate(record.text("video_id"), record.key, folders=("videos", "video"))]


def _multi_choice(record: Record, key: str, media: MediaFolder) -> Question:
    text, options = choice.split_question(record.text("question"))
    return choice.choice_question(
        key,
        _video(record, media),
        text,
        options,
        _labeled_answer(record, "answer", options),
        categories={"aspect": record.text("dim")},
    )


def _labeled_answer(record: Record, field: str, options: Sequence[str]) -> int:
    """The index of an answer such as `B. runs`, or of its letter alone."""
    said = record.text(field)
    if len(said.strip("(). ")) == 1:
        return choice.letter_index(said, options, record.key)
    return choice.text_index(said, options, record.key)


def _caption_matching(record: Record, key: str, media: MediaFolder) -> Question:
    """Two or more captions, each after its own name: `Option 1: …`, `Caption A: …`."""
    text, *lines = filter(None, map(str.strip, record.text("question").split("\n")))
    named = [line.partition(":") for line in lines]
    options = [caption.strip() for _, _, caption in named]
    name, _, caption = record.text("answer").partition(":")
    names = [label.strip().lower() for label, _, _ in named]
    if name.strip().lower() in names and not caption:
        answer = names.index(name.strip().lower())
    else:
        answer = choice.text_index(caption or name, options, record.key)
    return choice.choice_question(
        key, _video(record, media), text, options, answer, categories={"aspect": record.text("dim")}
    )


def _yes_no(record: Record, key: str, media: MediaFolder) -> Question:
    return yes_no_question(
        key,
        _video(record, media),
        record.text("question"),
        record.text("answer"),
        categories={"aspect": record.text("dim")},
    )


def _captioning(record: Record, key: str, media: MediaFolder) -> Question:
    text = record.text("question")
    about, options = choice.split_question(record.text("mc_question"))
    answer = _labeled_answer(record, "mc_answer", options)
    return Question(
        key=key,
        media=tuple(_video(record, media)),
        prompt=text,
        text=text,
        references=(options[answer],),
        categories={"aspect": record.text("dim")},
        extra={"about": about, "options": options, "answer": answer},
    )


def grade_caption(response: Response) -> Grade:
    """Compares the only option whose words are in a caption; without one, it is unjudged."""
    if response.error:
        return not_asked(response)
    extra = response.question.extra
    chosen = contained_option(response.text or "", extra["options"])
    details = {F1: token_f1(response.text or "", extra["options"][extra["answer"]])}
    if chosen is None:
        return Grade(
            response=response, parsed=response.text, status="unjudged", credit=0.0, details=details
        )
    right = chosen == extra["answer"]
    return Grade(
        response=response,
        parsed=extra["options"][chosen],
        status="right" if right else "wrong",
        credit=float(right),
        details=details,
    )


def score_captions(grades: Sequence[Grade]) -> Scores:
    """The captions that name the right option alone, also by aspect; token F1 beside them."""
    scores = choice.micro_scores()(grades)
    return Scores(
        main=dataclasses.replace(scores.main, name=NAMED),
        others=(detail_mean(grades, F1, "token F1", factor=100.0),),
        categories={
            axis: {value: dataclasses.replace(of, name=NAMED) for value, of in values.items()}
            for axis, values in scores.categories.items()
        },
        statuses=scores.statuses,
    )


def _benchmark(name: str, file: str, build: Build) -> Benchmark:
    return Benchmark(
        name=f"tempcompass_{name}",
        title=f"TempCompass ({name.replace('_', ' ')})",
        kind="choice",
        reader=partial(read, file, build),
        grade=choice.grade_choice,
        score=choice.micro_scores(),
        files=FILES.format(task=file, video_id="{video_id}"),
        scoring="right answers among all questions",
    )


MULTI_CHOICE = _benchmark("multi_choice", "multi-choice", _multi_choice)
CAPTION_MATCHING = _benchmark("caption_matching", "caption_matching", _caption_matching)
YES_NO = Benchmark(
    name="tempcompass_yes_no",
    title="TempCompass (yes or no)",
    kind="yes_no",
    reader=partial(read, "yes_no", _yes_no),
    grade=grade_yes_no,
    score=choice.micro_scores(),
    files=FILES.format(task="yes_no", video_id="{video_id}"),
    scoring="right answers among all questions; only the beginning of an answer is read",
)
CAPTIONING = Benchmark(
    name="tempcompass_captioning",
    title="TempCompass (captioning, without a judge)",
    kind="open",
    reader=partial(read, "captioning", _captioning),
    grade=grade_caption,
    score=score_captions,
    max_new_tokens=128,
    files="questions/captioning.json, questions/multi-choice.json, videos/{video_id}.mp4",
    scoring="captions with the words of the right option alone, among all, and token F1; the"
    " published number needs a judge",
)
BENCHMARKS = (MULTI_CHOICE, YES_NO, CAPTION_MATCHING, CAPTIONING)
