"""Images of benchmarks: files, base64 in tables, and the bytes in Parquet files of the hub."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence

from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks.tables import MediaFolder
from elva_jax.utils.numbers import shown


def locate_image(value: object, key: str, media: MediaFolder, folders: Sequence[str] = ()) -> Media:
    """The image that a field of a record holds.

    Args:
      value: a name, encoded bytes, an object with `bytes` or `path` as in Parquet files of the hub,
        or a list of one of them.
      key: the record, for messages.
      media: finds images by their name.
      folders: where an image with a name is looked for first.

    Raises:
      RecordError: it is none of these, or the name leaves the root.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return Media(value, "image")
    if isinstance(value, str) and value.strip():
        return media.locate(value.strip(), key, "image", folders)
    raise RecordError(key, f"its image is {shown(value)}, neither a file name nor an encoded image")


def decode_base64(text: str, key: str) -> bytes:
    """The bytes of an image that a table holds as base64, with or without a `data:` prefix.

    Raises:
      RecordError: the text is no base64.
    """
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RecordError(key, f"its image {shown(text[:40])} is no base64") from None
