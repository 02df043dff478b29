"""A judge's replies on disk, by what was asked.

    DIR/3f/3fa9….json      {"asked": {"model", "prompt", "task", "texts"}, "reply": "…"}

Several processes may share the folder: a file is either whole or absent, and all of them
write answers to the same question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.utils.failures import reason, repr_path
from elva_jax.utils.files import write_atomic
from elva_jax.utils.read import check_output_folder, read_json


class ReplyCache:
    """Replies by question.

    Args:
      folder: where they are; None: they are not kept.

    Raises:
      ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None):
        self._folder = None if folder is None else check_output_folder(folder, "--judge-cache")

    def get(self, asked: Mapping[str, Any]) -> str | None:
        """The reply to a question; None if there is none, or its file is damaged."""
        if self._folder is None or not (path := self._path(asked)).is_file():
            return None
        try:
            found = read_json(path)
        except DataError:
            return None
        reply = found.get("reply")
        return reply if found.get("asked") == _plain(asked) and isinstance(reply, str) else None

    def put(self, asked: Mapping[str, Any], reply: str) -> None:
        """Keeps a reply.

        Raises:
          ConfigError: it cannot be written.
        """
        if self._folder is None:
            return
        path = self._path(asked)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps({"asked": _plain(asked), "reply": reply}) + "\n")
        except OSError as error:
            where = f"--judge-cache {repr_path(path)}"
            raise ConfigError(f"{where}: cannot be written {reason(error, path)}") from error

    def _path(self, asked: Mapping[str, Any]) -> Path:
        assert self._folder is not None
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"


def _plain(asked: Mapping[str, Any]) -> Any:
    """As it is read back: tuples become lists."""
    return json.loads(json.dumps(asked))
