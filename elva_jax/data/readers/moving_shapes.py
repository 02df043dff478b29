"""Records of the built data set moving_shapes: one rendered clip with captions and questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.data.conversation import choice_prompt, escape
from elva_jax.data.example import Example, Media, Turn
from elva_jax.errors import RecordError


def annotation(record: Mapping[str, Any]) -> dict[str, Any]:
    """Decodes the annotation of a record."""
    return json.loads(_text(record["annotation"]))


def to_example(record: Mapping[str, Any], tasks: Sequence[str] = ()) -> Example:
    """Converts a record to an example with the turns of `tasks`; (): of all tasks.

    Raises:
      RecordError: the record is malformed.
    """
    key = _text(record["id"])
    try:
        turns = _turns(annotation(record))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(
            key, f"malformed annotation ({type(error).__name__}: {getattr(error, 'msg', error)})"
        ) from None
    media = record["media"]
    source = media.item() if hasattr(media, "item") else media
    return Example(
        key,
        (Media(source, _text(record["kind"])),),
        tuple(turn for turn in turns if not tasks or turn.task in tasks),
        independent=True,
    )


def _turns(notes: dict[str, Any]) -> list[Turn]:
    """The captions, and each question as an open one and, if it has options, as a choice."""
    turns = [
        Turn(escape(caption["question"]), caption["answer"], task=task)
        for task in ("object", "caption")
        for caption in notes["captions"].get(task, ())
    ]
    for k, asked in enumerate(notes["questions"]):
        question, options = asked["question"], tuple(asked.get("options") or ())
        shared = dict(family=asked["family"], options=options, about=f"question {k}")
        turns.append(Turn(escape(question), asked["answer"], task="open", **shared))
        if options:
            prompt = escape(choice_prompt(question, options))
            turns.append(Turn(prompt, asked["letter"], task="choice", **shared))
    return turns


def _text(value: Any) -> Any:
    """Decodes text that TFDS returns as bytes or as an object array of one."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode() if isinstance(value, bytes) else value
