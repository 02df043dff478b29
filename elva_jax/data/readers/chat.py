"""JSON conversations in the formats of LLaVA, ShareGPT and VideoChat."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from elva_jax.data.conversation import escape
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.readers import fields
from elva_jax.errors import RecordError
from elva_jax.video.read import IMAGE_SUFFIXES

KINDS: dict[str, Literal["video", "image"]] = {
    "image": "image",
    "images": "image",
    "video": "video",
    "videos": "video",
}
# The parts of a message content that are media, by their type.
PARTS: dict[Any, Literal["video", "image"]] = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
Locate = Callable[[object], "bytes | str"]
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
MARKER = re.compile(r"(?<!\\)<(image|video)>")
LINE = re.compile(r"[ \t\r]*(?:<(?:image|video)>[ \t\r]*)+")  # of markers alone


def has_turns(record: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the fields of a conversation."""
    return any(field in record for field in ("conversations", "messages", "QA", "texts"))


def to_example(record: object, key: str, locate: Locate) -> Example:
    """Converts a conversation and its media to an example.

    Turns are `conversations` of from and value, `messages` of role and content, `QA` of i, q and a
    (VideoChat), or `texts` of user and assistant. As in OpenAI's format, a content may be a list of
    parts, each a text or a medium. `image`, `images`, `video` and `videos` name one medium or a
    list of them; a list within the list is a video of frames. `fields` says which bounds are
    followed. Other fields, such as `id` and `data_source`, are ignored.

    Markers in a string of `conversations` or `messages` are the places of the record's media. Where
    there are more markers than media, those on lines of markers alone are the places if their
    number is that of the media; the others are text. Markers in parts, `QA` and `texts` are text.

    Args:
      record: a decoded JSON value.
      key: name of the record in messages.
      locate: returns the path or bytes of a medium, given its name in the record; may raise
        RecordError.

    Raises:
      RecordError: the record has another format.
    """
    if not isinstance(record, dict):
        raise RecordError(key, "is not a JSON object")
    return converse(record, key, _of_parts(record, media(record, key, locate), key, locate))


def _of_parts(
    record: Mapping[str, Any], found: tuple[Media, ...], key: str, locate: Locate
) -> tuple[Media, ...]:
    """The media of the message parts, which may stand for those `found` in fields of the record."""
    parts = list(_within_messages(record))
    left = {kind: [medium for medium in found if medium.kind == kind] for kind in KINDS.values()}
    media = []
    for kind, name, part in parts:
        given = left[kind].pop(0) if left[kind] else None
        if found and not given:
            return found  # other numbers than of the parts, which is an error of its own
        medium = given if given and name is None else _medium(name, kind, locate, key)
        if given and medium.source != given.source:
            raise RecordError(key, "names media in its own fields and others in its messages")
        media.append(fields.of_part(medium, part, key))
    return (*media, *left["image"], *left["video"]) if parts else found


def media(record: Mapping[str, Any], key: str, locate: Locate) -> tuple[Media, ...]:
    """The media that the fields of a record name.

    Raises:
      RecordError: raised by `locate`, or for a list that is no video.
    """
    found = []
    for field, kind in KINDS.items():
        names = record.get(field)
        if names:
            found += [
                _medium(name, kind, locate, key)
                for name in (names if isinstance(names, list) else [names])
            ]
    return tuple(found)


def _medium(name: object, kind: Literal["video", "image"], locate: Locate, key: str) -> Media:
    """A medium by its name; a list of names is a video of frames."""
    if not isinstance(name, list) or not name:
        return Media(locate(name), kind)
    frames = [locate(file) for file in name]
    files = tuple(
        file for file in frames if isinstance(file, str) and file.lower().endswith(IMAGE_SUFFIXES)
    )
    if kind == "image" or len(files) < len(frames):
        raise RecordError(key, "a list in the place of a medium must be image files of a video")
    return Media(files, kind)


def _within_messages(
    record: Mapping[str, Any],
) -> Iterator[tuple[Literal["video", "image"], object, Mapping[str, Any]]]:
    """Kind, name and part of each medium in message contents that are lists of parts."""
    messages = record.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if kind := kind_of(part):
                yield kind, name_of(part), part


def name_of(part: Mapping[str, Any]) -> Any:
    """The path or address of the medium that a part of a message names; None if it names none."""
    name = part.get(part["type"])
    return name["url"] if isinstance(name, dict) and "url" in name else name


def kind_of(part: object) -> Literal["video", "image"] | None:
    """The kind of medium of a part of a message content; None for text."""
    return PARTS.get(str(part.get("type"))) if isinstance(part, dict) else None


def _text_of(content: object, role: str, key: str, *, parts: bool) -> object:
    """The text of a message content; in a list of parts, markers replace the media.

    Args:
      content: a string or a list of parts.
      role: who says it.
      key: name of the record.
      parts: whether the record's media are parts; then, and in a list, markers in a question's
        text are text.

    Raises:
      RecordError: a medium in an answer or a system turn.
    """
    question = role == "user"
    if isinstance(content, str):
        return escape(content) if question and parts else content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        kind = kind_of(part)
        if kind and not question:
            raise RecordError(key, f"has a medium in a turn of the {role}; media are of questions")
        text = f"<{kind}>" if kind else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            return None
        texts.append(escape(text) if question and not kind else text)
    return "\n".join(texts)


def converse(record: Mapping[str, Any], key: str, media: tuple[Media, ...]) -> Example:
    """Converts a conversation to an example, given its media.

    Raises:
      RecordError: the turns are malformed or do not alternate, or bounds cannot be.
    """
    media = fields.excerpts(record, media, key)
    system: list[str] = []
    turns: list[Turn] = []
    for role, text in _messages(record, key):
        if role == "system" and not turns:
            system.append(text)
        elif role == "user" and (not turns or turns[-1].answer):
            turns.append(Turn(text, ""))
        elif role == "assistant" and turns and not turns[-1].answer:
            turns[-1] = Turn(turns[-1].question, text)
        elif role == "assistant" and not turns:
            continue  # as in LLaVA, an answer before the first question is skipped
        elif role == "user":
            raise RecordError(key, "a question has no answer")
        else:
            raise RecordError(key, f"its turns do not alternate (unexpected turn of the {role})")
    if isinstance(record.get("system"), str):
        system.append(record["system"])
    turns = _with_places(turns, len(media))
    example = Example(
        key, _in_order(media, turns), tuple(turns), ordered=True, system="\n".join(system).strip()
    )
    for text in (
        example.system,
        *(text for turn in turns for text in (turn.question, turn.answer)),
    ):
        if not _encodable(text):
            raise RecordError(key, "is not valid Unicode text")
    return example


def _messages(record: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    """The role (user, assistant or system) and text of every message."""
    for field, speaker, says in (
        ("conversations", "from", "value"),
        ("messages", "role", "content"),
    ):
        if field in record:
            if not isinstance(record[field], list):
                raise RecordError(key, f"'{field}' is not a list")
            parts = any(True for _ in _within_messages(record))
            for message in record[field]:
                message = message if isinstance(message, dict) else {}
                role = message.get(speaker)
                known = ROLES.get(str(role), "")
                text = _text_of(message.get(says), known, key, parts=parts)
                if not isinstance(role, str) or not isinstance(text, str):
                    raise RecordError(
                        key, f"an entry of '{field}' is not '{speaker}' and '{says}' in text"
                    )
                if role not in ROLES:
                    raise RecordError(
                        key, f"the role {role[:40]!a} is not one of {', '.join(ROLES)}"
                    )
                yield ROLES[role], text
            return
    for field, names in (("QA", ("i", "q", "a")), ("texts", ("user", "assistant"))):
        if isinstance(record.get(field), list):
            for pair in record[field]:
                found = [pair.get(name, "") for name in names] if isinstance(pair, dict) else []
                texts = [text for text in found if isinstance(text, str)]
                if len(texts) < len(names):
                    wanted = " and ".join(map(repr, names[-2:]))
                    raise RecordError(key, f"an entry of '{field}' is not {wanted} in text")
                yield "user", escape("\n".join(filter(None, texts[:-1])))
                yield "assistant", texts[-1]
            return
    raise RecordError(key, "has neither 'conversations' nor 'messages'")


def _with_places(turns: list[Turn], media: int) -> list[Turn]:
    """The turns, with markers that are text escaped where only lines of markers fit the media."""
    markers = sum(len(MARKER.findall(turn.question)) for turn in turns)
    lines = [line for turn in turns for line in turn.question.split("\n")]
    places = sum(len(MARKER.findall(line)) for line in lines if LINE.fullmatch(line))
    if not media or markers <= media or places != media:
        return turns

    def escaped(question: str) -> str:
        lines = question.split("\n")
        return "\n".join(
            line if LINE.fullmatch(line) else MARKER.sub(r"\\\g<0>", line) for line in lines
        )

    return [dataclasses.replace(turn, question=escaped(turn.question)) for turn in turns]


def _in_order(media: tuple[Media, ...], turns: list[Turn]) -> tuple[Media, ...]:
    """Orders media by their markers; as listed if `<image>` also marks videos."""
    kinds = [kind for turn in turns for kind in MARKER.findall(turn.question)]
    if sorted(kinds) != sorted(medium.kind for medium in media):
        return media
    left = {
        kind: iter([medium for medium in media if medium.kind == kind])
        for kind in ("image", "video")
    }
    return tuple(next(left[kind]) for kind in kinds)


def _encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text; it cannot encode lone surrogates, which JSON allows."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
