"""The rows of a file of questions, in any of three forms.

    {"id": "7", "video": "a.mp4", "prompt": "What moves?", "max_tokens": 64}
    {"id": "8", "image": "b.jpg", "conversations": [{"from": "human", "value": "<image>…"}, …]}
    {"custom_id": "9", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}

Of a conversation the last question is asked, and the turns before it are read. The answer that a
record has to it is the reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from elva_jax.data.conversation import choice_prompt
from elva_jax.data.example import Media
from elva_jax.data.readers import chat, fields, plain
from elva_jax.errors import RecordError, RequestError
from elva_jax.inference import media_urls
from elva_jax.inference.batches.dialogue import Dialogue, single_turn
from elva_jax.inference.batches.queries import Writing
from elva_jax.inference.chat_completions import LENGTHS, NUMBERS, parse_chat, parse_writing
from elva_jax.inference.request_settings import read_hybrid, read_merging
from elva_jax.utils.numbers import shown
from elva_jax.video.read import IMAGE_SUFFIXES

URL = "/v1/chat/completions"
LONGEST_ID, LONGEST_LABEL = 1000, 2**20  # characters
OPTIONS = ("options", "candidates", "choices")
SETTINGS = (*LENGTHS, *NUMBERS, "stop")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it is asked.

    Attributes:
      dialogue: the conversation.
      writing: how the answer is written.
      merging: on, off, or the name of its settings; None: as the command says.
      hybrid: fields of a `Hybrid`, where its videos have frames of two sizes.
      ignored: keys of a body that mean nothing here.
    """

    dialogue: Dialogue[Media]
    writing: Writing
    merging: bool | str | None = None
    hybrid: Mapping[str, int | str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Label:
    """The fields of a row that its answer repeats.

    Attributes:
      form: of the answer.
      id: its name, whatever JSON it is; None: it has none.
      model: the name of the model in an answer to OpenAI's rows.
      reference: the answer that a conversation has; "": none.
    """

    form: Literal["record", "openai"]
    id: Any = None
    model: str = ""
    reference: str = ""


def is_openai(value: Any) -> bool:
    """Whether a row is a line of OpenAI's batches."""
    return isinstance(value, Mapping) and "custom_id" in value and "body" in value


def read_row(
    value: Any, place: str, media_dir: Path, default: Writing, profiles: Collection[str] = ()
) -> Row:
    """The request of a row.

    Args:
      value: the decoded JSON.
      place: the file with line or index, for messages.
      media_dir: the resolved folder that paths are relative to and stay in.
      default: how an answer is written where the row does not say.
      profiles: names of settings of merging.

    Raises:
      RecordError, RequestError: it cannot be asked.
    """
    if not isinstance(value, Mapping):
        raise RecordError(place, f"is {shown(value)}, no JSON object")
    row = _read(value, place, media_dir, default)
    given = value["body"] if is_openai(value) else value
    hybrid = read_hybrid(given, (medium.frames for medium in row.dialogue.media))
    return replace(row, merging=read_merging(given, profiles), hybrid=hybrid)


def _read(value: Mapping[str, Any], place: str, media_dir: Path, default: Writing) -> Row:
    def locate(name: object) -> str | bytes:
        return media_urls.locate(media_dir, name, place)

    if is_openai(value):
        return _openai(value, locate, default)
    writing = parse_writing({name: value[name] for name in SETTINGS if name in value}, default)
    record = plain.with_media_names(value)
    if chat.has_turns(record):
        example = chat.to_example(record, place, locate)
        if not example.turns:
            raise RecordError(place, "the conversation is empty")
        turns = tuple((turn.question, turn.answer) for turn in example.turns)
        dialogue = Dialogue(turns=turns, media=example.media, system=example.system)
        return Row(dialogue=dialogue, writing=writing)
    return Row(dialogue=_plain(record, place, locate), writing=writing)


def label_of(value: Any, model: str = "") -> Label:
    """The fields of a row that its answer repeats, whatever else is wrong with the row.

    What has more than LONGEST_LABEL characters is left out.
    """
    if not isinstance(value, Mapping):
        return Label(form="record")
    if is_openai(value):
        body = value["body"]
        name = _short(body.get("model")) if isinstance(body, Mapping) else None
        name = name if isinstance(name, str) else model
        return Label(form="openai", id=_short(value["custom_id"]), model=name)
    found = next((value[name] for name in plain.IDS if value.get(name) is not None), None)
    reference = value.get("answer") or value.get("reference")
    turns = value.get("conversations") or value.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping):
        last = turns[-1]
        role, text = last.get("from", last.get("role")), last.get("value", last.get("content"))
        reference = text if chat.ROLES.get(str(role)) == "assistant" else None
    reference = _short(reference) if isinstance(reference, str) else None
    return Label(form="record", id=_short(found), reference=reference or "")


def _short(value: Any) -> Any:
    """The value, or None where it is too long to be repeated."""
    return value if len(json.dumps(value)) <= LONGEST_LABEL else None


def _openai(value: Mapping[str, Any], locate: chat.Locate, default: Writing) -> Row:
    if not isinstance(value["custom_id"], str):
        raise RequestError("custom_id", f"is {shown(value['custom_id'])}, no text")
    if len(value["custom_id"]) > LONGEST_ID:
        raise RequestError("custom_id", f"has more than {LONGEST_ID} characters")
    if value.get("method", "POST") != "POST":
        raise RequestError("method", f"is {shown(value['method'])}; only POST is answered")
    if not str(value.get("url", URL)).endswith(URL):
        raise RequestError("url", f"is {shown(value['url'])}; only {URL} is answered")
    found = parse_chat(value["body"], locate, default)
    if value["body"].get("stream"):
        raise RequestError("stream", "a file of answers is not streamed")
    return Row(dialogue=found.dialogue, writing=found.writing, ignored=found.ignored)


def _plain(record: Mapping[str, Any], place: str, locate: chat.Locate) -> Dialogue[Media]:
    """The question of a record with one, whose options are listed with letters."""
    text = next((record[name] for name in plain.QUESTIONS if record.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        listed = ", ".join(plain.QUESTIONS)
        raise RecordError(place, f"asks nothing; give it one of {listed}, or a conversation")
    media = chat.media(record, place, locate)
    known = record
    if not media and "media" in record:
        named = record["media"] or []
        named = named if isinstance(named, list) else [named]
        media, known = tuple(_by_suffix(name, place, locate) for name in named), {"video": named}
    media = fields.excerpts(record, media, place)
    media = plain.with_frames({**record, **known}, media, place)
    options = next((record[name] for name in OPTIONS if record.get(name)), None)
    if options is not None:
        if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
            raise RecordError(place, f"its options are {shown(options)}, no list of texts")
        text = choice_prompt(text.strip(), options)
    system = record.get("system") or ""
    if not isinstance(system, str):
        raise RecordError(place, f"'system' is {shown(system)}, no text")
    if any("\ud800" <= letter <= "\udfff" for letter in text + system):
        raise RecordError(place, "is not valid Unicode text")
    return single_turn(text.strip(), media, system.strip())


def _by_suffix(name: Any, place: str, locate: Callable[[Any], str | bytes]) -> Media:
    """A medium of the field `media`: an image by its ending, else a video."""
    image = isinstance(name, str) and (
        name.lower().endswith(IMAGE_SUFFIXES) or name[:11].lower() == "data:image/"
    )
    if not isinstance(name, str):
        raise RecordError(place, f"'media' has {shown(name)}, no path")
    return Media(locate(name), "image" if image else "video")
