"""Results as JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.utils.read import check_output, open_output


def save_json(result: Any, path: str | Path) -> Path:
    """Writes a result as JSON, with null for numbers that are not finite, and returns the path.

    Raises:
      ConfigError: the file cannot be written.
    """
    path = check_output(path, "--json")
    text = to_text(jsonable(result), indent=1)
    with open_output(path, "--json") as file:
        file.write(text + "\n")
    return path


def to_text(value: Any, indent: int | None = None) -> str:
    """A value of JSON's types as text that UTF-8 can hold.

    Unpaired surrogates, which it cannot hold, are escaped with all else beyond ASCII.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent, allow_nan=False)
    return text


def jsonable(value: Any) -> Any:
    """The same tree in JSON's types.

    Tuples become lists, NumPy scalars and arrays become numbers and lists, NaN and infinity become
    None.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
