"""The manifest: a JSON line a medium, with what is known about it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elva_jax.data.readers.paths import inside
from elva_jax.errors import DataError, RecordError
from elva_jax.tools.recaption.engine import Kind


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A medium to describe."""

    id: str
    kind: Kind
    medium: str  # as the manifest names it
    path: Path | None  # None where that name leads out of the folder of media
    caption: str = ""
    objects: tuple[str, ...] = ()
    ocr: tuple[str, ...] = ()


def read(path: Path, media_dir: Path) -> Iterator[Item]:
    """Yields the items of a JSONL manifest: `id`, `image` or `video` (relative to `media_dir`), optional `caption`, `objects`, `ocr`.

    Raises:
      DataError: no such file, or a line that is not such an object, or an id that is there twice; the message names the line.
    """
    seen: set[str] = set()
    media_dir = media_dir.resolve()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    line.decode()
                    value = json.loads(line)
                    json.dumps(
                        value, ensure_ascii=False
                    ).encode()  # half a surrogate pair, which JSON can write and a file name cannot
                    item = _item(value, media_dir)
                except (ValueError, RecursionError) as error:  # of JSON, UTF-8 or a field
                    raise DataError(
                        f"{path}:{number}: {error}; a line is {{'id': ..., 'image' or 'video': ...}}"
                    ) from None
                if item.id in seen:
                    raise DataError(
                        f"{path}:{number}: id '{item.id}' is there twice; ids must differ"
                    )
                seen.add(item.id)
                yield item
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); --manifest must name a JSONL file"
        ) from None


def _item(value: Any, media_dir: Path) -> Item:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    kinds = [kind for kind in ("image", "video") if kind in value]
    if len(kinds) != 1:
        raise ValueError("needs either 'image' or 'video'")
    medium = value[kinds[0]]
    if not isinstance(medium, str) or not medium or "\0" in medium:
        raise ValueError(f"'{kinds[0]}' is not a path")
    if not isinstance(value.get("id"), str | int) or value["id"] == "":
        raise ValueError("'id' is missing")
    caption = value.get("caption") or ""
    if not isinstance(caption, str):
        raise ValueError("'caption' is not text")
    id = str(value["id"])
    return Item(
        id,
        kinds[0],
        medium,
        _inside(media_dir, medium, id),
        caption,
        _strings(value, "objects"),
        _strings(value, "ocr"),
    )


def _inside(media_dir: Path, medium: str, id: str) -> Path | None:
    """The path of a medium; None where it leads out of the folder, for a manifest may come from anywhere."""
    try:
        return Path(inside(media_dir, medium, id))
    except RecordError:
        return None


def _strings(value: dict[str, Any], key: str) -> tuple[str, ...]:
    strings = value.get(key) or []
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError(f"'{key}' is not a list of strings")
    return tuple(strings)
