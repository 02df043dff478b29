"""One HTML file with every question, its answer and what became of it; it loads nothing.

The questions are JSON within the page, which `page.js` filters and draws fifty at a time. A content
security policy names the hashes of the script and the style, so that no text of a data set or a
model can run or load anything, even if it were taken for markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks.base import Evaluation, Grade, Response
from elva_jax.evaluation.columns import scale
from elva_jax.evaluation.results import settings, thumbnails
from elva_jax.evaluation.results.codec import encode
from elva_jax.evaluation.results.table import COUNTED, interval, metric_rows, number
from elva_jax.evaluation.results.thumbnails import Thumbnails
from elva_jax.utils.read import check_output, open_output

LONGEST = 4000  # characters of one text; the JSON file has all of it
FRAMES = 100  # media whose frames are shown


def save(
    evaluations: Sequence[Evaluation],
    path: str | Path,
    *,
    frames: int = FRAMES,
    folders: Sequence[Path] | None = None,
    option: str = "--html",
) -> Path:
    """Writes the page, complete or not at all, and returns the path.

    Args:
      evaluations: one per benchmark.
      path: the file; folders above it are made.
      frames: number of media whose frames are shown; 0: none, and no medium is read.
      folders: only media below one of them are shown, because results of others may name any file;
        None: all.
      option: its name in messages.

    Raises:
      ConfigError: the file cannot be written.
    """
    path = check_output(path, option)
    page = build(evaluations, frames=frames, folders=folders)
    with open_output(path, option) as file:
        file.write(page)
    return path


def build(
    evaluations: Sequence[Evaluation],
    *,
    frames: int = FRAMES,
    folders: Sequence[Path] | None = None,
) -> str:
    """The page as text; arguments as of `save`."""
    media = [_media(evaluation) for evaluation in evaluations]
    every = list(dict.fromkeys(medium for of_benchmark in media for medium in of_benchmark))
    allowed = [_media(evaluation, allowed=True) for evaluation in evaluations]
    found = thumbnails.read(thumbnails.choose(allowed, frames), folders)
    numbers = {medium: n for n, medium in enumerate(every)}
    data = {
        "benchmarks": [evaluation.title for evaluation in evaluations],
        "media": [_medium(medium, found.get(medium, Thumbnails())) for medium in every],
        "items": [
            item
            for n, evaluation in enumerate(evaluations)
            for item in _items(evaluation, n, numbers)
        ],
    }
    style, script = _file("page.css"), _file("page.js")
    page = string.Template(_file("page.html")).substitute(
        title=html.escape(" · ".join(evaluation.title for evaluation in evaluations)),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        scores=_scores(evaluations),
        settings=_settings(evaluations),
        note=html.escape(_note(found, len(every))),
        data=_script_json(data),
    )
    return page.encode("utf-8", "replace").decode()


def _media(evaluation: Evaluation, *, allowed: bool = False) -> list[Media]:
    """The media of a benchmark, each once; all, or those without links that are not followed."""
    grades = next(iter(evaluation.grades.values()), ())
    questions = [grade.response.question for grade in grades]
    return list(dict.fromkeys(m for q in questions if not (allowed and q.problem) for m in q.media))


def _medium(medium: Media, frames: Thumbnails) -> dict[str, Any]:
    source = encode(medium.source)
    if isinstance(source, str):
        name = Path(source).name
    else:
        name = f"{len(source)} frames from {Path(next(iter(source), '')).name}"
    if medium.span != (0.0, None):
        end = "end" if medium.end is None else f"{medium.end:g} s"
        name += f" ({medium.start:g} s to {end})"
    return {"name": _short(name), "frames": list(frames.urls), "note": _short(frames.note)}


def _items(
    evaluation: Evaluation, benchmark: int, media: Mapping[Media, int]
) -> Iterable[dict[str, Any]]:
    """One record per response, with its grade in every way of answering."""
    found: dict[int, tuple[Response, dict[str, Any]]] = {}
    for way, grades in evaluation.grades.items():
        for grade in grades:
            _, of_response = found.setdefault(id(grade.response), (grade.response, {}))
            of_response[way] = _grade(grade)
    for response, of_response in found.values():
        question = response.question
        yield {
            "benchmark": benchmark,
            "key": _short(question.key),
            "media": [media[medium] for medium in question.media if medium in media],
            "text": _short(question.text),
            "options": [_short(option) for option in question.options],
            "answer": question.answer,
            "references": [_short(text) for text in question.references],
            "categories": [f"{axis}: {value}" for axis, value in question.categories.items()],
            "written": None if response.text is None else _short(response.text),
            "error": _short(response.error),
            "tokens": list(response.tokens),
            "grades": of_response,
        }


def _grade(grade: Grade) -> dict[str, Any]:
    parsed = _short(grade.parsed) if isinstance(grade.parsed, str) else grade.parsed
    return {"status": grade.status, "parsed": parsed, "details": encode(grade.details)}


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters in the JSON file)"


def _scores(evaluations: Sequence[Evaluation]) -> str:
    """The scores as a table, which needs no script."""
    heads = ("benchmark", "answer", "number", "score", "of", "95 %", "n", *COUNTED.values())
    rows = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
    for evaluation in evaluations:
        for way, scores in evaluation.scores.items():
            for name, metric in metric_rows(evaluation, way):
                counts = [str(scores.statuses.get(status, 0)) for status in COUNTED]
                texts = (evaluation.title, way, name)
                numbers = [number(metric), scale(metric.maximum), interval(metric)]
                numbers += [str(metric.count), *counts]
                cells = [f"<td>{html.escape(text)}</td>" for text in texts]
                cells += [f'<td class="number">{html.escape(text)}</td>' for text in numbers]
                rows.append("".join(cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _settings(evaluations: Sequence[Evaluation]) -> str:
    """The settings of all benchmarks, then those of each."""
    shared = settings.common(evaluations)
    parts = [("all benchmarks", shared)]
    parts += [(e.title, settings.own(e, shared)) for e in evaluations]
    lists = []
    for title, values in parts:
        if values:
            lines = (
                f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
                for name, value in values.items()
            )
            lists.append(f"<p>{html.escape(title)}</p><dl>{''.join(lines)}</dl>")
    return "".join(lists)


def _note(found: Mapping[Media, Thumbnails], media: int) -> str:
    shown = [frames for frames in found.values() if frames.urls]
    size = sum(len(url) for frames in shown for url in frames.urls) / 2**20
    return (
        f"Frames of {len(shown)} of {media} media, up to {thumbnails.FRAMES} each ({size:.1f} MiB);"
        f" elva evaluate --html-frames N shows those of N media."
    )


def _script_json(value: Any) -> str:
    """JSON that ends no script element, whatever its texts hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
