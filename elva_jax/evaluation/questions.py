"""The questions of a split, grouped by video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elva_jax.data import sources
from elva_jax.data.conversation import question_text
from elva_jax.data.readers import moving_shapes
from elva_jax.errors import DataError
from elva_jax.evaluation.answers import option_index
from elva_jax.evaluation.baselines import any_object


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one video."""

    video: str  # key of the video
    family: str
    text: str
    answer: str
    options: tuple[str, ...]
    any_object: float  # expected accuracy of naming any object of the video


@dataclass(frozen=True, kw_only=True)
class Video:
    """One record of the split, whose media are still encoded."""

    key: str
    source: bytes | str | tuple[str, ...]
    questions: tuple[Question, ...]


def read_split(dataset: str, split: str, data_dir: Path, limit: int | None) -> list[Video]:
    """The records of a split that have questions with options.

    Raises:
      DataError: no such data set or split, none that has such questions, or an answer that is not
        exactly one of its options.
    """
    records = sources.open_source(dataset, split, data_dir)
    videos = []
    for index in range(min(limit or len(records), len(records))):
        record = records[index]
        example = sources.to_example(record, ("open",), dataset)
        named_objects = moving_shapes.annotation(record).get("named_objects", ())
        questions = []
        for turn in example.turns:
            if not turn.options:
                continue
            if option_index(turn.answer, turn.options) is None:
                raise DataError(
                    f"{example.key}: the answer '{turn.answer}' to '{turn.question[:60]}' is not"
                    " exactly one of its options"
                )
            questions.append(
                Question(
                    video=example.key,
                    family=turn.family,
                    text=question_text(example, turn),
                    answer=turn.answer,
                    options=turn.options,
                    any_object=any_object(turn.answer, turn.options, named_objects),
                )
            )
        if questions:
            source = example.media[0].source
            videos.append(Video(key=example.key, source=source, questions=tuple(questions)))
    if not videos:
        raise DataError(f"{data_dir / dataset}: split '{split}' has no question with options")
    return videos
