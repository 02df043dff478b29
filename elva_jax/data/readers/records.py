"""Helpers of the readers: bytes at an offset, and text, JSON and captions from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elva_jax.data.example import Example, Media, Turn
from elva_jax.errors import RecordError

# Captions come without questions.
QUESTIONS = {"video": "Describe the video briefly.", "image": "Describe the image briefly."}
CAPTIONS = ("caption", "text")  # fields of a record that has no conversation


def read_span(path: Path, start: int, end: int) -> bytes:
    """Bytes start … end - 1 of a file, opened for each call so that readers can be shared."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def decode(data: bytes, key: str, encoding: str = "utf-8") -> str:
    """Text of the record `key`.

    Raises:
      RecordError: it is not UTF-8.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise RecordError(key, "is not UTF-8 text") from None


def decode_json(data: bytes, key: str) -> Any:
    """The JSON value of the record `key`.

    Raises:
      RecordError: it is not UTF-8, or not JSON.
    """
    text = decode(data, key)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            key, f"is not JSON ({getattr(error, 'msg', type(error).__name__)})"
        ) from None


def captioned(key: str, media: tuple[Media, ...], caption: str) -> Example:
    """An example of media and a caption, which answers a fixed question."""
    return Example(key, media, (Turn(QUESTIONS[media[0].kind], caption, task="caption"),))
