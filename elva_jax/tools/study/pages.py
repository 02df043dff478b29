"""The tables of a study in other pages, between two marks: no number is copied by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError
from elva_jax.tools.study import report
from elva_jax.utils.failures import repr_path
from elva_jax.utils.read import open_output, read_text

BEGIN, SHORT = "<!-- study: {} -->", "<!-- study: {}, short -->"
END = "<!-- end of study -->"


def put_tables(path: Path, summary: Mapping[str, Any]) -> None:
    """Puts the tables of a study between its marks in a Markdown file.

    Raises:
      ConfigError: the file cannot be read or written, or has no such marks.
    """
    text = read_text(path, ConfigError)
    marks = [mark.format(summary["name"]) for mark in (BEGIN, SHORT)]
    if not any(_block(mark).search(text) for mark in marks):
        raise ConfigError(f"{repr_path(path)}: has no {' or '.join(marks)} with {END} after it")
    with open_output(path, "--write") as file:
        file.write(with_tables(text, summary))


def with_tables(text: str, summary: Mapping[str, Any]) -> str:
    """A page whose marks of a study have its tables between them; other pages stay as they are."""
    for mark, content in ((BEGIN, _tables(summary)), (SHORT, report.short(summary))):
        begin = mark.format(summary["name"])
        block = f"{begin}\n{content}\n\n{report.made(summary)}\n{END}"
        text = _block(begin).sub(block.replace("\\", r"\\"), text)
    return text


def _block(begin: str) -> re.Pattern[str]:
    return re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL)


def _tables(summary: Mapping[str, Any]) -> str:
    """The tables of the report without its headings."""
    if not summary["variants"]:
        return "No run is done yet."
    names = report.columns(summary)
    parts = [report.table(summary, column) for column in names]
    parts += [report.families(summary, column) for column in names]
    return "\n\n".join([*parts, report.costs(summary)])
