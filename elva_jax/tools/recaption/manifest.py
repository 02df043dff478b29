"""The manifest: one JSON line per medium, with hints for its caption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elva_jax.data.readers.fields import ENDS, STARTS
from elva_jax.data.readers.paths import inside
from elva_jax.errors import DataError, RecordError
from elva_jax.tools.recaption.engine import Kind
from elva_jax.utils.read import parse_json, read_lines


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A medium to describe."""

    id: str
    kind: Kind
    medium: str  # path as the manifest has it
    path: Path | None  # None if that path leads out of the folder of media
    caption: str = ""
    objects: tuple[str, ...] = ()
    ocr: tuple[str, ...] = ()


def read(path: Path, media_dir: Path) -> Iterator[Item]:
    """Yields the items of a JSONL manifest.

    A line has `id`, and `image` or `video` (relative to `media_dir`); `caption`, `objects` and
    `ocr` are optional.

    Raises:
      DataError: no such file, an invalid line, or an id that occurs twice; names the line.
    """
    seen: set[str] = set()
    media_dir = media_dir.resolve()
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            item = _parse(line, media_dir)
        except ValueError as error:  # of JSON, UTF-8 or a field
            raise DataError(
                f"{path}:{number}: {error}; a line is {{'id': ..., 'image' or 'video': ...}}"
            ) from None
        if item.id in seen:
            raise DataError(f"{path}:{number}: id '{item.id}' occurs twice; ids must differ")
        seen.add(item.id)
        yield item


def _parse(line: bytes, media_dir: Path) -> Item:
    value = parse_json(line)
    # JSON can hold half of a surrogate pair, which no file name can: this raises ValueError.
    json.dumps(value, ensure_ascii=False).encode()
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    kinds: list[Kind] = [kind for kind in ("image", "video") if kind in value]
    if len(kinds) != 1:
        raise ValueError("needs either 'image' or 'video'")
    if bounds := [name for name in (*STARTS, *ENDS) if value.get(name) is not None]:
        raise ValueError(f"'{bounds[0]}': a caption is of the whole video; cut the excerpt out")
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
        id=id,
        kind=kinds[0],
        medium=medium,
        path=_resolve(media_dir, medium, id),
        caption=caption,
        objects=_strings(value, "objects"),
        ocr=_strings(value, "ocr"),
    )


def _resolve(media_dir: Path, medium: str, id: str) -> Path | None:
    """The path of a medium; None if it leads out of the folder, since manifests are not trusted."""
    try:
        return Path(inside(media_dir, medium, id))
    except RecordError:
        return None


def _strings(value: dict[str, Any], key: str) -> tuple[str, ...]:
    strings = value.get(key) or []
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError(f"'{key}' is not a list of strings")
    return tuple(strings)
