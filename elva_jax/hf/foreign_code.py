"""Python code that a model folder would run: its own files, and those that its settings name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elva_jax.errors import ConvertError
from elva_jax.hf.export import REMOTE_CODE
from elva_jax.utils.read import read_json

NAMES_CODE = ("auto_map", "custom_pipelines")  # keys of transformers' settings


def refuse_foreign_code(folder: Path) -> None:
    """Refuses a folder that transformers would run code of, unless this version wrote that code.

    `auto_map` of any settings file may name a file in a subfolder or in another repository.

    Raises:
      ConvertError: naming every such file.
    """
    files = [file.name for file in sorted(folder.glob("*.py")) if not _is_ours(file)]
    named = [
        f"{reference} (named by {settings.name})"
        for settings in sorted(folder.glob("*.json"))
        # Any type: other tools leave lists in a folder, too.
        for reference in _references(read_json(settings, ConvertError, object))  # type: ignore[type-var]
        if not _is_ours(folder / f"{reference.rpartition('.')[0]}.py", folder)
    ]
    if foreign := [*files, *dict.fromkeys(named)]:
        raise ConvertError(
            f"{folder}: would run {', '.join(foreign)}, not written by this version of elva_jax;"
            " --trust-remote-code allows it"
        )


def _references(value: Any) -> Iterator[str]:
    """The `module.Class` words under the keys that name code, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _words(item) if key in NAMES_CODE else _references(item)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _words(item)


def _is_ours(file: Path, folder: Path | None = None) -> bool:
    """Whether a file of the folder's top level is one of ours, byte by byte."""
    ours = REMOTE_CODE / file.name
    if folder is not None and file.parent != folder:
        return False
    return ours.is_file() and file.is_file() and ours.read_bytes() == file.read_bytes()
