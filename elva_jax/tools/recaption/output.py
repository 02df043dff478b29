"""JSONL files that survive being killed: a line is either whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.recaption.manifest import Item

# What a caption answers, by chance of the id; a model trained on the captions should not hang on one wording.
QUESTIONS = {
    "image": (
        "Describe this image in detail.",
        "What does this image show? Be thorough.",
        "Give a detailed description of the image.",
    ),
    "video": (
        "Describe this video in detail.",
        "What happens in this video? Be thorough.",
        "Give a detailed description of the video.",
    ),
}


def recover(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a journal, and their length in bytes; a last line without its end was torn by a kill, and does not count.

    Raises:
      DataError: a line is not an object with an id.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            lines.append(json.loads(line))
            lines[-1]["id"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a line of ours; repair or remove it") from None
    return lines, whole


def agree(out: Path, settings: dict[str, Any]) -> None:
    """Keeps beside `out` what its captions depend on, so that a later start cannot mix them with others.

    Raises:
      ConfigError: the captions there were begun with other settings.
    """
    path = out.with_name(f"{out.stem}.settings.json")
    begun = json.loads(path.read_text()) if path.exists() else settings
    changed = [
        f"{name} {begun.get(name)!r}, now {settings[name]!r}"
        for name in settings
        if begun.get(name) != settings[name]
    ]
    if changed:
        raise ConfigError(
            f"{out}: begun with {'; '.join(changed)}: restore that, or name another --out"
        )
    path.write_text(json.dumps(settings, indent=2) + "\n")


class Journal:
    """Appends JSON objects to a file, of which it is the only writer.

    What a kill left of a last line is cut off when the file is opened; everything before it is in `lines`.

    Raises:
      DataError: another process writes the file, or a line in it is not JSON.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.lines, whole = recover(path)
            os.ftruncate(self._file, whole)
        except BlockingIOError:
            os.close(self._file)
            raise DataError(
                f"{path}: another process writes it; give each its own --out or --shard"
            ) from None
        except DataError:
            os.close(self._file)
            raise

    def append(self, value: dict[str, Any]) -> None:
        """Writes one line, whole."""
        data = (json.dumps(value, ensure_ascii=False) + "\n").encode()
        while data:  # a full disk raises; a short write goes on
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Releases the file."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def llava(item: Item, caption: str) -> dict[str, Any]:
    """A caption as a conversation in LLaVA's format."""
    questions = QUESTIONS[item.kind]
    question = questions[hashlib.sha256(item.id.encode()).digest()[0] % len(questions)]
    turns = [
        {"from": "human", "value": f"<{item.kind}>\n{question}"},
        {"from": "gpt", "value": caption.strip()},
    ]
    return {"id": item.id, item.kind: item.medium, "conversations": turns}
