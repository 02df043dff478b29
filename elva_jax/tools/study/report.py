"""The report of a study as Markdown, and its rows for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.tools.study.statistics import MACRO

NAMES = {"open": "written", "likelihood": "likeliest option"}
FLOORS = {
    "blind": "blind (no video)",
    "any_object": "any object of the video",
    "single_frame": "single frame",
}
DASH = "–"


def markdown(summary: Mapping[str, Any], figure: str = "") -> str:
    """The page: question, numbers, numbers by family, cost, and how it was made.

    Args:
      summary: from `summarize`.
      figure: path of the picture; "": none.
    """
    parts = [f"# {summary['name']}"]
    parts += [text for text in (summary["question"], summary["note"]) if text]
    if not summary["variants"]:
        parts.append("No run is done yet.")
    else:
        parts += [table(summary, column) for column in columns(summary)]
        parts += [families(summary, column) for column in columns(summary)]
        if figure:
            parts.append(f"![accuracies with intervals]({figure})")
        parts += [costs(summary)]
    return "\n\n".join([*parts, made(summary)]) + "\n"


def columns(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that the summary has."""
    first = next(iter(summary["variants"].values()))
    return tuple(column for column in NAMES if column in first["accuracy"])


def table(summary: Mapping[str, Any], column: str) -> str:
    """A row per variant: macro accuracy, its range over seeds, and the difference."""
    paper = summary["paper"]
    head = ["variant", f"macro, {NAMES[column]} (95 %)", "seeds: least to most", "seeds"]
    head += [f"minus {summary['baseline']} (95 %)", "seeds above it"]
    head += [f"paper: {paper}", "its difference"] if paper else []
    reference = summary["variants"].get(summary["baseline"], {}).get("paper")
    rows = []
    for name, variant in summary["variants"].items():
        macro = variant["accuracy"][column][MACRO]
        found = variant["difference"].get(column, {}).get(MACRO)
        seeds = list(macro["by_seed"].values())
        row = [name, interval(macro), f"{min(seeds):.1f} to {max(seeds):.1f}", str(len(seeds))]
        row += [interval(found, signed=True) if found else DASH, _above(found)]
        if paper:
            own = variant["paper"]
            row += [DASH if own is None else f"{own:g}"]
            row += [DASH if None in (own, reference) or not found else f"{own - reference:+.1f}"]
        rows.append(row)
    return _table(head, rows)


def families(summary: Mapping[str, Any], column: str) -> str:
    """A row per variant: accuracy by family, its mean and its range over seeds."""
    first = next(iter(summary["variants"].values()))["accuracy"][column]
    rows = []
    for name, variant in summary["variants"].items():
        cells = [_spread(variant["accuracy"][column][family]) for family in first]
        rows.append([name, *cells])
    return _table([f"{NAMES[column]}: mean (least to most)", *first], rows)


def short(summary: Mapping[str, Any]) -> str:
    """One table of all variants and columns: mean and range over seeds by family."""
    if not summary["variants"]:
        return "No run is done yet."
    names = columns(summary)
    first = next(iter(summary["variants"].values()))["accuracy"][names[0]]
    rows = []
    for name, variant in summary["variants"].items():
        for column in names:
            cells = [_spread(variant["accuracy"][column][family]) for family in first]
            rows.append([f"{name}, {NAMES[column]}", str(len(variant["seeds"])), *cells])
    for column, families in summary["floors"].items():
        cells = [f"{families[family]['value']:.0f}" for family in first]
        rows.append([f"*{FLOORS[column]}*", str(len(families[MACRO]["by_seed"])), *cells])
    return _table(["percent: mean (least to most)", "seeds", *first], rows)


def costs(summary: Mapping[str, Any]) -> str:
    """A row per variant: what it takes."""
    head = ["variant", "parameters", "training, min of processor time per seed"]
    head += ["evaluation, s", "visual tokens kept"]
    rows = []
    for name, variant in summary["variants"].items():
        kept = variant["visual_kept"]
        rows.append(
            [
                name,
                f"{variant['parameters']:,}",
                f"{variant['training_cpu_seconds'] / 60:.1f}",
                f"{variant['seconds']:.1f}",
                DASH if kept is None else f"{kept:.2f}",
            ]
        )
    return _table(head, rows)


def made(summary: Mapping[str, Any]) -> str:
    """Where the numbers come from."""
    lines = [
        f"Made by `elva study {summary['name']}` from `{summary['config']}`,"
        f" commit {', '.join(filter(None, summary['commits'])) or 'unknown'}."
    ]
    if summary["variants"]:
        lines += [
            f"Asked: {summary['questions']} questions about {summary['videos']} videos"
            f" ({summary['data']}). Accuracies are in percent; macro is the mean over families.",
            "Intervals: bootstrap over seeds and videos, paired for differences; with one seed,"
            " over videos alone, and with few seeds narrower than they should be.",
            f"Cost: {summary['cpu_seconds'] / 3600:.2f} h of processor time on"
            f" {'; '.join(summary['machines'])}{_killed(summary.get('killed', 0))}.",
        ]
    for key, text in (("missing", "Not done"), ("failed", "Failed")):
        if summary[key]:
            lines.append(f"{text}: {'; '.join(summary[key])}.")
    return "\n".join(f"- {line}" for line in lines)


def _killed(starts: int) -> str:
    if not starts:
        return ""
    what = "1 start was killed, whose" if starts == 1 else f"{starts} starts were killed, whose"
    return f" ({what} time is not in it)"


def interval(estimate: Mapping[str, Any], *, signed: bool = False) -> str:
    """`84.1 (82.0 to 86.2)`."""
    sign = "+" if signed else ""
    value, low, high = (f"{estimate[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _above(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return DASH
    seeds = list(difference["by_seed"].values())
    return f"{sum(value > 0 for value in seeds)} of {len(seeds)}"


def _spread(estimate: Mapping[str, Any]) -> str:
    seeds = list(estimate["by_seed"].values())
    if len(seeds) == 1:
        return f"{seeds[0]:.0f}"
    return f"{estimate['value']:.0f} ({min(seeds):.0f} to {max(seeds):.0f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
