"""Questions as a user gives them: text, or parts that say where the media stand.

    "What moves?"                                          text, whatever it says; media come first
    [{"type": "text", "text": "What differs between"},
     {"type": "video"}, "and", {"type": "video"}, "?"]     the next two media stand there
    [{"type": "video", "video": "a.mp4", "start": 2, "end": 4.5, "nframes": 8}, "What moves?"]

Parts have the form of message contents in training data (`data.readers.chat`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from elva_jax.data import conversation, example
from elva_jax.data.readers import chat, fields
from elva_jax.errors import DataError, LayoutError
from elva_jax.inference.media import Medium, Part, Prompt

WHERE = "the prompt"  # in errors


def question(prompt: Prompt) -> str:
    """A prompt as a question of `data.conversation`: markers are places, other ones are escaped.

    Raises:
      LayoutError: a prompt that asks nothing.
      DataError: a part that is neither text nor a medium, or text that is not Unicode.
    """
    parts = [prompt] if isinstance(prompt, str) else list(_listed(prompt))
    texts = [conversation.escape(part) if isinstance(part, str) else "<video>" for part in parts]
    if not any(isinstance(part, str) and part.strip() for part in parts):
        raise LayoutError("the prompt is empty; ask something")
    return "\n".join(text if isinstance(prompt, str) else text.strip() for text in texts)


def take_media(prompt: Prompt, given: Sequence[Medium]) -> tuple[list[Medium], Prompt]:
    """The media of a prompt in the order of their places, and the prompt without their names.

    Args:
      prompt: text or parts. Parts that name a medium have it there; the others have those `given`,
        in order.
      given: media that the prompt is about.

    Raises:
      DataError: a part that is neither text nor a medium, a field that cannot be followed, or parts
        that name media beside given ones without a place.
    """
    if isinstance(prompt, str):
        return list(given), prompt
    left = list(given)
    media: list[Medium] = []
    bare: list[Part] = []
    for part in _listed(prompt):
        if isinstance(part, str):
            bare.append(part)
            continue
        kind, name = chat.kind_of(part), chat.name_of(part)
        bare.append({"type": kind})
        if name is not None:
            media.append(_excerpt(cast(Any, name), cast(Any, kind), part))
        elif left:
            media.append(_excerpt(cast(Any, left.pop(0)), cast(Any, kind), part))
        else:
            raise DataError(f"{WHERE}: a part of type {kind} names no {kind}, and none is left")
    if media and left:
        raise DataError(f"{WHERE}: {len(left)} of {len(given)} media have no part of their own")
    return media + left, bare


def placed(text: str) -> list[Part]:
    """Parts of a text with markers; see `PromptReader.place_media`."""
    parts: list[Part] = []
    for piece in conversation.split_text(text):
        parts += [{"type": "video"}, piece]
    return parts[1:]


def shown(prompt: Prompt) -> str:
    """The beginning of a prompt, for errors."""
    parts = [prompt] if isinstance(prompt, str) else prompt
    texts = (part if isinstance(part, str) else f"({part.get('type')})" for part in parts)
    return " ".join(texts)[:60]


def _listed(prompt: Sequence[Part]) -> Iterator[str | dict[str, Any]]:
    """Texts as strings, media as they are."""
    for part in prompt:
        if isinstance(part, str) or chat.kind_of(part):
            yield cast(Any, part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
        else:
            raise DataError(f"{WHERE}: the part {str(part)[:60]!a} is neither text nor a medium")


def _excerpt(source: Medium, kind: Any, part: Mapping[str, Any]) -> Medium:
    """A medium with the bounds and the number of frames that its part has."""
    listed = isinstance(source, (list, tuple)) and len(source) > 0
    if files := listed and all(isinstance(file, str) for file in cast(Any, source)):
        source = tuple(cast(Any, source))  # the frames of a video, as in training data
    medium = fields.of_part(example.Media(cast(Any, source), kind), part, WHERE)
    whole = (medium.start, medium.end, medium.frames) == (0.0, None, None)
    if files or isinstance(source, (str, Path, bytes)):
        return medium if kind == "image" or not whole else source
    if not whole:
        raise DataError(f"{WHERE}: frames at hand have neither bounds nor a number of frames")
    return source
