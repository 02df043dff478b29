"""A measured table as text: ours beside the paper's, why numbers differ in kind, the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.evaluation.columns import format_value, scale
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.tables.figures import SHORT
from elva_jax.tools.tables.protocols import Protocol

COLUMNS = ("row", "benchmark", "ours", "95 %", "paper", "diff", "n", "unparsed", "note")
SPEED = ("row", "benchmark", "tokens", "kept", "questions/s")


def show(protocol: Protocol, report: Mapping[str, Any]) -> str:
    """Formats the report of `measure`."""
    cells, notes = report["cells"], _Notes()
    rows = [_row(cell, notes) for cell in cells]
    for missing in report["missing"]:
        rows += _paper_alone(missing)
    parts = [protocol.title, text_table(COLUMNS, rows, words=2)]
    legend = [
        "Scores are of 100, or of what stands beside the benchmark.",
        "paper: its number; n: questions; –: not measured, or not known here",
        "note: why ours and the paper's are not the same measurement:",
        *(f"{number} {reason}" for reason, number in notes.numbers.items()),
    ]
    if cells and not any(cell["not_comparable"] for cell in cells):
        legend.append("no note: the same questions, frames and way of scoring as in the paper")
    known = {name for row in protocol.rows.values() for name in row.figures.values}
    if unknown := [SHORT[name] for name in protocol.tasks if name not in known]:
        legend.append(f"not known here: the paper's numbers on {', '.join(unknown)}")
    if protocol.note:
        legend.append(protocol.note)
    parts.append("\n".join(legend))
    if protocol.settings and cells:
        parts.append(text_table(SPEED, [_speed(cell) for cell in cells], words=2))
        parts.append("tokens: of a prompt before merging; kept: after the last merging layer")
    if report["claims"]:
        parts.append("\n".join(["the paper's claims, in points:", *map(_claim, report["claims"])]))
    if recipes := [m["recipe"] for m in report["missing"] if m["recipe"]]:
        commands = [f"  elva train --config {recipe},size=7b" for recipe in recipes]
        parts.append("\n".join(["rows without a checkpoint are trained with", *commands]))
    return "\n\n".join(parts)


class _Notes:
    """Numbers for reasons, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, reasons: Sequence[str]) -> str:
        numbers = [self.numbers.setdefault(r, len(self.numbers) + 1) for r in reasons]
        return ",".join(map(str, numbers))


def _row(cell: Mapping[str, Any], notes: _Notes) -> tuple[str, ...]:
    largest = cell["maximum"]
    bounds = "–"
    if cell["low"] is not None and cell["high"] is not None:
        bounds = f"{_number(cell['low'], largest)}–{_number(cell['high'], largest)}"
    difference = cell["difference"]
    sign = "" if difference is None else "-" if difference < 0 else "+"
    return (
        cell["row"],
        SHORT.get(cell["benchmark"], cell["title"])
        + ("" if scale(largest) == "100" else f" of {scale(largest)}"),
        _number(cell["ours"], largest),
        bounds,
        _number(cell["paper"], largest),
        sign + _number(None if difference is None else abs(difference), largest),
        str(cell["questions"]),
        str(cell["statuses"].get("unparsed", 0)),
        notes.of(cell["not_comparable"]),
    )


def _paper_alone(missing: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The paper's row where no checkpoint was given."""
    return [
        (missing["row"], SHORT[name], "–", "–", _number(value), "–", "–", "–", "")
        for name, value in missing["paper"].items()
    ] or [(missing["row"], "", "–", "–", "–", "–", "–", "–", "")]


def _speed(cell: Mapping[str, Any]) -> tuple[str, ...]:
    kept, speed = cell["kept"], cell["questions_per_second"]
    return (
        cell["row"],
        SHORT.get(cell["benchmark"], cell["title"]),
        "–" if cell["tokens"] is None else f"{cell['tokens']:,.0f}",
        "–" if kept is None else f"{kept:.1%}",
        "–" if speed is None else f"{speed:.2f}",
    )


def _claim(claim: Mapping[str, Any]) -> str:
    points = "without a number"
    if claim["points"] is not None:
        points = f"{claim['bound']} {claim['points']:+.1f}".strip()
    ours = "not measured" if claim["ours"] is None else f"{claim['ours']:+.1f}"
    on = ", ".join(SHORT[name] for name in claim["benchmarks"])
    return f"  {claim['text']}\n    {on}: paper {points}, ours {ours}"


def _number(value: float | None, largest: float = 100.0) -> str:
    return "–" if value is None else format_value(value, largest)
