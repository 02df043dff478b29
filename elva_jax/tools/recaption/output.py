"""The output of a run: journals in JSONL that survive a kill, and the settings file."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.recaption.manifest import Item
from elva_jax.utils.files import lock, write_atomic
from elva_jax.utils.read import LARGEST_ARRAY, parse_json, read_bytes, read_json

LINE = b'{"id": '  # the beginning of every line of a journal
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


def settings_path(out: Path) -> Path:
    """The file beside `out` with the settings of its captions."""
    return out.with_name(f"{out.stem}.settings.json")


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Compares the settings with those stored beside `out`, and stores them at the first start.

    Raises:
      ConfigError: the captions there were started with other settings.
    """
    path = settings_path(out)
    if not path.exists():
        write_atomic(path, json.dumps(settings, indent=2) + "\n")
        return
    stored = read_json(path, ConfigError)
    changed = [
        f"{name} {stored.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{out}: started with {'; '.join(changed)}: restore that, or name another --out"
        )


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuses outputs that are one of the inputs under any name.

    Raises:
      ConfigError: naming the file.
    """
    for out, file in itertools.product(outputs, inputs):
        if out.exists() and file.exists() and out.samefile(file):
            raise ConfigError(f"{out}: is the input {file}; name another --out")


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
def open_journal(path: Path, settings: Path, key: str) -> Iterator[Journal]:
    """Locks a journal, cuts off an incomplete last line, and opens it for appending.

    Args:
      path: the journal.
      settings: the settings file that an earlier run has left.
      key: what every line has beside its id.

    Raises:
      DataError: another process writes the file, or no earlier run wrote what it contains.
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
        with path.open("rb") as written:
            written.seek(complete)
            beginning = written.read(len(LINE))
        ours = settings.is_file() and all(key in line for line in lines)
        if (lines or beginning) and not (ours and LINE.startswith(beginning)):
            raise DataError(
                f"{path}: contains something that elva recaption did not write; name another --out"
            )
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
