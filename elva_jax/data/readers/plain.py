"""Records that ask one question about some media, under the names that such fields have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elva_jax.data.example import Media
from elva_jax.data.readers import chat, fields
from elva_jax.errors import RecordError

QUESTIONS = ("question", "Q", "query", "prompt", "text", "instruction")
IDS = ("question_id", "qid", "id", "uid", "key")
MEDIA: Mapping[str, str] = {  # other names of the fields of `chat.KINDS`
    "video_path": "video",
    "video_name": "video",
    "video_file": "video",
    "image_path": "image",
    "image_name": "image",
    "image_file": "image",
}


def with_media_names(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same record with the names of media that the other readers know."""
    known = any(name in record for name in chat.KINDS)
    renamed = {} if known else {new: record[old] for old, new in MEDIA.items() if old in record}
    return {**record, **renamed}


def with_frames(record: Mapping[str, Any], media: tuple[Media, ...], key: str) -> tuple[Media, ...]:
    """The media of a record, with the number of frames that it has for them.

    Raises:
      RecordError: there are none, and the record does not say so.
    """
    if not media and not any(name in record for name in chat.KINDS):
        listed = ", ".join((*chat.KINDS, *MEDIA))
        raise RecordError(
            key, f'names no medium ({listed}); write "video": null for a question without'
        )
    counts = {name: record[name] for name in fields.COUNTS if name in record}
    return tuple(
        fields.of_part(medium, {"start": medium.start, "end": medium.end, **counts}, key)
        if counts and medium.kind == "video"
        else medium
        for medium in media
    )
