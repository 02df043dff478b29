"""Answers as lines of the output, in the form of their rows.

    {"index": 0, "id": "7", "answer": "A red square.", "finish_reason": "stop", "usage": {…}}
    {"index": 1, "id": "8", "error": {"message": "…", …}}
    {"id": "…", "custom_id": "9", "response": {"status_code": 200, "body": {…}}, "error": null}

While rows are being asked, the lines stand in journals, in the folder OUTPUT.journal. `merge`
writes the output as a whole, in the order of the input.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.inference.batch_file.rows import Label
from elva_jax.inference.batches.journal import Line, lines_from
from elva_jax.inference.batches.queries import Reply
from elva_jax.inference.chat_completions import completion, finish_reason, usage
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import open_output

ENDING = ".journal"  # of the folder beside the output


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a journal holds the answer to a row."""

    path: Path
    start: int
    error: str  # "": the row was asked


def journal_folder(output: Path) -> Path:
    """The folder of an output's journals."""
    return output.with_name(output.name + ENDING)


def check(output: Path, source: Path) -> None:
    """Refuses an output that would replace something else than answers of an earlier start.

    Raises:
      ConfigError: it is the input, or a file that no start has written.
    """
    if not output.exists():
        return
    if source.exists() and output.samefile(source):
        raise ConfigError(f"--output {repr_path(output)}: is the input; name another file")
    if output.stat().st_size and not journal_folder(output).is_dir():
        raise ConfigError(
            f"--output {repr_path(output)}: is there, and {journal_folder(output).name}, with which"
            " it could be continued, is not; name another file, or remove this one"
        )


def record_of(digest: str, label: Label, reply: Reply, error: dict[str, Any]) -> dict[str, Any]:
    """The line of a journal.

    Args:
      digest: hash of the row.
      label: what the answer repeats of the row.
      reply: what the model says; its tag is the row's number from 0.
      error: why the row could not be asked, where it could not.
    """
    row = reply.tag
    if label.form == "openai":
        line = _openai(f"{digest}-{row}", label, reply, error)
    else:
        line = _plain(row, label, reply, error)
    return {"key": str(row), "hash": digest, "error": reply.error, "line": line}


def _plain(row: int, label: Label, reply: Reply, error: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"index": row, "id": label.id}
    if (answer := reply.answer) is None:
        return {**line, "error": error}
    line |= {"answer": answer.text, "finish_reason": finish_reason(answer)}
    if label.reference:
        line["reference"] = label.reference
    line["usage"] = usage(reply.tokens[0], len(answer.tokens))
    return {**line, "merged_tokens": list(reply.tokens[1:])}


def _openai(name: str, label: Label, reply: Reply, error: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {"status_code": 400, "request_id": f"req_{name}", "body": None}
    failed: dict[str, Any] | None = error
    if reply.answer is not None:
        now, failed = int(time.time()), None
        body = completion(reply.answer, reply.tokens, name=name, model=label.model, created=now)
        response |= {"status_code": 200, "body": body}
    return {"id": f"batch_req_{name}", "custom_id": label.id, "response": response, "error": failed}


def reader_of(digests: Mapping[str, str], way_out: str) -> Any:
    """Reads a line of a journal; `digests` are the hashes of the rows by key."""

    def read(line: Line) -> tuple[str, Place]:
        key, error = line.record["key"], line.record["error"]
        if not isinstance(key, str) or not isinstance(error, str):
            raise TypeError
        if digests.get(key) != line.record["hash"] or "line" not in line.record:
            raise DataError(
                f"{repr_path(line.path)}: line {line.number}: row {shown(key)} is not the one of"
                f" the input any more; {way_out}"
            )
        return key, Place(path=line.path, start=line.start, error=error)

    return read


def merge(output: Path, places: Iterable[Place]) -> None:
    """Writes the output from the journals, whole or not at all.

    Raises:
      ConfigError: it cannot be written.
    """
    with open_output(output, "--output") as file:
        for place in places:
            line, _ = next(lines_from(place.path, place.start, 0))
            file.write(_text(line.record["line"]) + "\n")


def _text(line: Any) -> str:
    """A line that people can read; escaped where it has lone surrogates, which JSON allows."""
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(line)
    return text
