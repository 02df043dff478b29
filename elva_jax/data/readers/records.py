"""Helpers of the readers: reading bytes, decoding text and JSON, captions as conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elva_jax.data.example import Example, Media, Turn
from elva_jax.errors import RecordError
from elva_jax.utils.read import open_regular, parse_json

# The questions that captions answer.
QUESTIONS = {"video": "Describe the video briefly.", "image": "Describe the image briefly."}
CAPTIONS = ("caption", "text")  # fields with the caption of a record without a conversation


def read_span(path: Path, start: int, end: int) -> bytes:
    """Reads bytes start … end - 1; the file is opened per call so that readers can be shared."""
    with open_regular(path) as file:
        file.seek(start)
        return file.read(end - start)


def decode(data: bytes, key: str, encoding: str = "utf-8") -> str:
    """Decodes the text of the record `key`.

    Raises:
      RecordError: the text is not UTF-8.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise RecordError(key, "is not UTF-8 text") from None


def decode_json(data: bytes, key: str) -> Any:
    """Decodes the JSON value of the record `key`.

    Raises:
      RecordError: the text is not UTF-8 or not JSON, or an object has the same key twice.
    """
    text = decode(data, key)
    try:
        return parse_json(text)
    except ValueError as error:
        raise RecordError(key, f"is not JSON ({getattr(error, 'msg', error)})") from None


def captioned(key: str, media: tuple[Media, ...], caption: str) -> Example:
    """An example of media with a caption as the answer to a fixed question."""
    return Example(key, media, (Turn(QUESTIONS[media[0].kind], caption, task="caption"),))
