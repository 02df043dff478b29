"""report.md: the measurements as Markdown tables, beside the goals and the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from elva_jax.tools.gpu_report import sections

Rows = list[dict[str, Any]]


def markdown(report: dict[str, Any]) -> str:
    """The page of a report, complete or not."""
    parts = {name: part["rows"] for name, part in report["parts"].items()}
    about = report["about"]
    out = [f"# GPU report: {about['card']}, {about['date']}", sections.machine(parts)]
    makers: Sequence[tuple[str, Callable[[dict[str, Rows]], str]]] = (
        ("Goals", sections.goals),
        ("Training steps, 1.5B", sections.training),
        ("`elva plan` beside the real steps", sections.plan),
        ("7B: prefill and decoding of one stream", sections.answers),
        ("Table 5 at 7B", sections.table5),
        ("Attention: cuDNN beside XLA", sections.attention),
        ("Serving", sections.serving),
    )
    for title, maker in makers:
        text = maker(parts)
        if text:
            out += [f"## {title}", text]
    out += ["## Parts", _parts(report["parts"])]
    errors = [
        f"- {name}, {row['case']}: {row.get('error') or row.get('skipped')}"
        for name, part in report["parts"].items()
        for row in part["rows"]
        if row.get("error") or row.get("skipped")
    ]
    return "\n\n".join([*out, *(["\n".join(errors)] if errors else [])]) + "\n"


def _parts(parts: dict[str, dict[str, Any]]) -> str:
    rows = [
        (name, part["status"], f"{part['seconds']:.0f}", str(part["note"]).replace("|", "/"))
        for name, part in parts.items()
    ]
    return sections.table(("part", "status", "seconds", "note"), rows)
