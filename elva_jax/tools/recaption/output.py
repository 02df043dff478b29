"""The output of a run: journals in JSONL that survive a kill, and the settings file."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.recaption.manifest import Item
from elva_jax.utils.files import lock, write_atomic
from elva_jax.utils.read import LARGEST_ARRAY, parse_json, read_bytes, read_json

# Questions that a caption answers, chosen by the hash of the id: a model trained on the captions
# should not depend on one wording.
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


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a journal, and their length in bytes.

    A last line without its newline was cut off by a kill and is left out.

    Raises:
      DataError: a line is not an object with an id.
    """
    content = read_bytes(path, limit=LARGEST_ARRAY) if path.exists() else b""
    complete = content.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(content[:complete].splitlines(), 1):
        try:
            lines.append(parse_json(line))
            lines[-1]["id"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}: not a JSON object with an id; repair or remove this line"
            ) from None
    return lines, complete


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Compares the settings with those stored beside `out`, and stores them at the first start.

    Raises:
      ConfigError: the captions there were started with other settings.
    """
    path = out.with_name(f"{out.stem}.settings.json")
    stored = read_json(path, ConfigError) if path.exists() else settings
    changed = [
        f"{name} {stored.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{out}: started with {'; '.join(changed)}: restore that, or name another --out"
        )
    write_atomic(path, json.dumps(settings, indent=2) + "\n")


class Journal:
    """A JSONL file that this process alone appends to; `open_journal` makes one.

    Args:
      lines: the objects it held when it was opened.
      file: open for appending bytes.
    """

    def __init__(self, lines: list[dict[str, Any]], file: IO[bytes]):
        self.lines = lines
        self._file = file

    def append(self, value: dict[str, Any]) -> None:
        """Writes one line and hands it to the operating system."""
        self._file.write((json.dumps(value, ensure_ascii=False) + "\n").encode())
        self._file.flush()


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Locks a journal, cuts off an incomplete last line, and opens it for appending.

    Raises:
      DataError: another process writes the file, or a line in it is invalid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path, wait=False))
        except BlockingIOError:
            raise DataError(
                f"{path}: another process writes it; give each process its own --out or --shard"
            ) from None
        lines, complete = read_journal(path)
        file = stack.enter_context(path.open("ab"))
        file.truncate(complete)
        yield Journal(lines, file)


def llava(item: Item, caption: str) -> dict[str, Any]:
    """A caption as a conversation in LLaVA's format."""
    questions = QUESTIONS[item.kind]
    question = questions[hashlib.sha256(item.id.encode()).digest()[0] % len(questions)]
    turns = [
        {"from": "human", "value": f"<{item.kind}>\n{question}"},
        {"from": "gpt", "value": caption.strip()},
    ]
    return {"id": item.id, item.kind: item.medium, "conversations": turns}
