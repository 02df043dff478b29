"""Python code that the settings files of a model folder name, which transformers would run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elva_jax.errors import ElvaError
from elva_jax.utils.read import read_json

NAMES_CODE = ("auto_map", "custom_pipelines")  # keys of transformers' settings
# Keys whose values are code if they name a repository: `someone/kernel`.
NAMES_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")


def code_references(
    folder: Path, error: type[ElvaError], key: str = ""
) -> Iterator[tuple[str, str]]:
    """Each reference to code, such as `module.Class`, and the name of the file that has it.

    Args:
      folder: whose JSON files are read.
      error: type of the errors.
      key: only those of one class of transformers, such as AutoTokenizer; "": all.

    Raises:
      ElvaError: of the type `error`, for a file that cannot be read.
    """
    for file in sorted(folder.glob("*.json")):
        # Any type: other tools leave lists in a folder, too.
        value = read_json(file, error, object)  # type: ignore[type-var]
        for reference in _references(value, key):
            yield reference, file.name


def _references(value: Any, key: str) -> Iterator[str]:
    """The words under the keys that name code, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in NAMES_KERNELS and not key:
                yield from (word for word in _words(item) if "/" in word)
            elif name not in NAMES_CODE:
                yield from _references(item, key)
            elif not key or not isinstance(item, dict):
                yield from _words(item)
            else:
                yield from _words(item.get(key))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _words(item)
