"""Results written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError


def save_json(result: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the whole result as JSON (numbers that do not exist are null) and returns the path.

    Raises:
      ConfigError: it cannot be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(jsonable(result), indent=1, allow_nan=False, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    except OSError as error:
        raise ConfigError(
            f"--json {path}: {error.strerror or error}; name a file that can be written"
        ) from error
    return path


def jsonable(value: Any) -> Any:
    """The same tree in JSON's types: tuples become lists, NumPy scalars Python numbers, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
