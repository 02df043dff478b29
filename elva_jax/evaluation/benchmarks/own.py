"""One's own questions: a JSON array or JSONL, in the manner of MVBench, LLaVA or ShareGPT.

    {"video": "a.mp4", "question": "What moves?", "options": ["a dog", "a cat"], "answer": "B"}
    {"image": "b.jpg", "question": "What is it?", "answer": "a red car"}
    {"id": "7", "video": "c.mp4", "start": 3, "end": 9, "conversations": [{"from": "human", …}, …]}

A record with options is a choice; one with a reference alone is an open question. Every turn of a
conversation is asked on its own. Prompts of conversations are asked as they are, others are worded
as in training.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from elva_jax.data.conversation import question_text
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.readers import chat, fields, paths, plain
from elva_jax.data.readers.json_file import JsonFile
from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Question, Response, Scores
from elva_jax.evaluation.benchmarks.open_answers import grade_open, open_question, open_scores
from elva_jax.evaluation.benchmarks.own_fields import (
    listed_options,
    options_of,
    references_of,
    right_option,
)
from elva_jax.evaluation.benchmarks.parsing import check_options
from elva_jax.evaluation.benchmarks.tables import Record
from elva_jax.utils.failures import repr_path

SUFFIXES = (".json", ".jsonl")
AXES = ("category", "task_type", "question_type", "type", "task", "domain", "duration_group")
OPEN_TOKENS = 64


def load_own(path: str | Path, media_dir: str | Path | None = None) -> Benchmark:
    """The benchmark of a file of one's own questions.

    Args:
      path: a JSON array of records, or a record per line.
      media_dir: the folder that media paths are relative to and stay in; None: that of the file.
        Links that lead out of it are not followed, unless `BenchmarkConfig.follow_links` says so.

    Raises:
      DataError: the file is missing, damaged or empty.
      RecordError: a record cannot be asked or scored; its name is the file with line or index.

    Example:
      >>> import elva_jax
      >>> own = elva_jax.load_own("own.jsonl", "videos")  # doctest: +SKIP
      >>> found = elva_jax.evaluate_benchmarks("runs/7b", [own])  # doctest: +SKIP
    """
    path = Path(path)
    file = JsonFile(path, "" if media_dir is None else str(media_dir))
    questions = tuple(_read(file))
    if not questions:
        raise DataError(f"{repr_path(path)}: has no questions")
    has_options = any(question.options for question in questions)
    has_open = any(not question.options for question in questions)
    kind: Literal["choice", "open"] = "choice" if has_options else "open"
    scoring = "right options among all questions" if not has_open else "exact match, or a judge"

    return Benchmark(
        # Results are compared by name: none may be that of a public benchmark.
        name="own_" + re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem)[:80],
        title=path.name,
        kind=kind,
        reader=lambda _: questions,
        grade=grade,
        score=score,
        max_new_tokens=OPEN_TOKENS if has_open else 16,
        judge="qa" if has_open else "",
        files=path.name,
        scoring=scoring,
        root=file.root,
    )


def grade(response: Response) -> Grade:
    """Compares a written answer with the right option, or with the references."""
    return (choice.grade_choice if response.question.options else grade_open)(response)


def score(grades: Sequence[Grade]) -> Scores:
    """Accuracy where there are options, `open_scores` where there are none; both where mixed."""
    if all(grade.response.question.options for grade in grades):
        return choice.micro_scores()(grades)
    scores = open_scores(grades)
    chosen = [grade for grade in grades if grade.response.question.options]
    if not chosen:
        return scores
    opened = open_scores([grade for grade in grades if not grade.response.question.options])
    return dataclasses.replace(
        scores,
        main=choice.accuracy(grades, name="accuracy"),
        others=(choice.accuracy(chosen, name="choice accuracy"), opened.main, *opened.others),
    )


def _read(file: JsonFile) -> Iterator[Question]:
    """The questions of all records; a repeated id is followed by the place of its record."""
    used: set[str] = set()
    for number in range(len(file)):
        place, value = file.record(number)
        if not isinstance(value, dict):
            raise RecordError(place, "is not a JSON object")
        record = Record(place, plain.with_media_names(value))
        for question in _questions(record, file.root):
            key = question.key if question.key not in used else f"{question.key} ({place})"
            used.add(key)
            yield dataclasses.replace(question, key=key)


def _questions(record: Record, root: Path) -> Iterator[Question]:
    """The question of a record, or one per turn of its conversation."""

    def locate(name: object) -> str:
        return paths.named(root, name, record.key)

    name = record.key if record.get(*plain.IDS) is None else record.text(*plain.IDS)
    if not chat.has_turns(record.fields):
        found = chat.media(record.fields, record.key, locate)
        media = fields.excerpts(record.fields, found, record.key)
        media = plain.with_frames(record.fields, media, record.key)
        yield _question(record, name, media)
        return
    example = chat.to_example(record.fields, record.key, locate)
    media = plain.with_frames(record.fields, example.media, record.key)
    example = dataclasses.replace(example, media=media)
    if not example.turns:
        raise RecordError(record.key, "the conversation is empty")
    alone = len(example.turns) == 1
    # Options and answers beside a conversation of several turns are of none of them.
    own = record if alone else Record(record.key, {})
    categories = _categories(record)
    for number, turn in enumerate(example.turns, start=1):
        question = _of_turn(own, name if alone else f"{name}#{number}", example, turn)
        yield dataclasses.replace(question, categories=categories)


def _question(record: Record, name: str, media: tuple[Media, ...]) -> Question:
    text, options = record.text(*plain.QUESTIONS), options_of(record)
    if options:
        answer = right_option(record, options)
        categories = _categories(record)
        return choice.choice_question(name, media, text, options, answer, categories=categories)
    references = references_of(record)
    if not references:
        raise RecordError(record.key, "has neither options nor a reference answer")
    return open_question(name, media, text, references, categories=_categories(record))


def _of_turn(record: Record, name: str, example: Example, turn: Turn) -> Question:
    """The question of a turn, whose answer is the reference or one of the options.

    Options are fields of the record, or lines of the question that begin with their letters.
    """
    text, said = question_text(example, turn), turn.answer.strip()
    if not text:
        raise RecordError(record.key, "has a question without text")
    prompt = f"{example.system}\n\n{text}" if example.system else text
    given, listed = options_of(record), listed_options(text)
    options = check_options(given or listed, record.key) if given or listed else ()
    answer = right_option(record, options, said, strict=bool(given)) if options else None
    if given and not listed:
        return choice.choice_question(name, example.media, prompt, options, answer)
    if given or answer is not None:
        return Question(
            key=name,
            media=example.media,
            prompt=prompt,
            text=prompt,
            options=options,
            answer=answer,
        )
    references = (said,) if said else references_of(record)
    if not references:
        raise RecordError(record.key, "has neither options nor a reference answer")
    return open_question(name, example.media, prompt, references, request="")


def _categories(record: Record) -> dict[str, str]:
    found = {axis: record.get(axis) for axis in AXES}
    return {axis: value for axis, value in found.items() if isinstance(value, str) and value}
