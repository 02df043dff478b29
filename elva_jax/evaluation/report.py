"""A result for people: a table in the terminal and a bar chart.

Every function takes `EvalResult.to_dict()`, or the JSON file that `elva evaluate --json` wrote.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from elva_jax.evaluation.columns import Column, fit, printable

COLUMNS = {
    "open": "open",
    "likelihood": "options",
    "letter": "letter",
    "blind": "blind",
    "any_object": "any object",
    "single_frame": "one frame",
}
FACTS = (
    *("checkpoint", "stage", "step", "weights_hash", "prompts_hash", "dtype", "weights"),
    *("num_frames", "longest_edge", "hybrid", "merging", "elva_jax", "jax", "device"),
)
BASELINES = ("blind", "any_object", "single_frame")
Result = Mapping[str, Any]


def table(result: Result, console: Console | None = None) -> None:
    """Prints the tables of `build_tables`, as wide as the console, and the caption."""
    console = console or Console()
    notes = Text(caption(result), style="table.caption")
    console.print(Group(*build_tables(result, console.width), notes))


def build_tables(result: Result, width: int) -> list[Table]:
    """Accuracies per family and their mean, in percent ± one standard error; baselines last.

    One table, or several where it would be wider than `width` terminal cells.
    """
    rows = result["families"]
    counts = [str(row["count"]) for row in rows.values()]
    first = [
        Column(title="family", cells=[*rows, "macro"], left=True),
        Column(title="n", cells=[*counts, str(result["data"]["questions"])]),
    ]
    rest = [
        Column(
            title=COLUMNS[key],
            cells=[*(_cell(row.get(key)) for row in rows.values()), _cell(result["macro"][key])],
            style="dim" if key in BASELINES else None,
        )
        for key in _measured(result)
    ]
    tables = fit(first, rest, width, total=True)
    tables[0].title = Text(_title(result))
    return tables


def caption(result: Result) -> str:
    """A few lines about the columns and about answers that could not be used."""
    answers, unreadable = result["answers"], result["data"]["unreadable"]
    lines = [
        "in percent · open: written answer, exact match · options: likeliest of the options' texts"
        " · letter: likeliest letter after listed options",
        f"{answers['total']} written answers: {answers['empty']} empty, {answers['unfinished']} cut"
        f" off, {answers['outside_options']} equal to none of the options; all of them count",
    ]
    if (kept := result["tokens"]["visual_kept"]) is not None:
        lines.append(f"{100 * kept:.0f} % of the visual tokens remain, averaged over layers")
    if unreadable:
        lines.append(f"{len(unreadable)} videos could not be read: their questions are in no score")
    return "\n".join([*lines, facts(result)])


def facts(result: Result) -> str:
    """The settings that a comparison needs: weights, prompts, frames, types and versions."""
    known = {**result["model"], **result["data"], **result["settings"], **result["versions"]}
    named = ((name, known.get(name)) for name in FACTS)
    return printable(" · ".join(f"{name} {value}" for name, value in named if value is not None))


def figure(result: Result, path: str | Path) -> Path:
    """Draws accuracies with one standard error as bars, and baselines as marks beside them."""
    # matplotlib is an extra.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {**result["families"], "macro": result["macro"]}
    keys = _measured(result)
    bars = [key for key in keys if key not in BASELINES]
    marks = [key for key in keys if key in BASELINES]
    fig = Figure(figsize=(max(7.0, 1.3 * len(rows)), 4.2), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots()
    width = 0.8 / max(len(bars), 1)
    for i, key in enumerate(bars):
        x, y, stderr = _points(rows, key)
        left = [v + (i - (len(bars) - 1) / 2) * width for v in x]
        axes.bar(left, y, width, yerr=stderr, label=COLUMNS[key], error_kw={"lw": 0.8})
    for key, marker in zip(marks, ("_", "x", "+"), strict=False):
        x, y, _ = _points(rows, key)
        (line,) = axes.plot(x, y, marker=marker, label=COLUMNS[key], linestyle="none")
        line.set(markersize=11, markeredgewidth=1.8, color="black")
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    axes.set_title(_title(result))
    axes.legend(
        ncols=len(keys), fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1)
    )
    fig.supxlabel("\n".join(textwrap.wrap(facts(result).replace("$", r"\$"), 110)), fontsize=7)
    fig.savefig(path, dpi=150)
    return path


def _cell(score: Mapping[str, Any] | None) -> str:
    """`83.1±1.6` in percent; a dash where nothing was measured."""
    if score is None or score["accuracy"] is None:
        return "–"
    stderr = score["stderr"]
    return f"{100 * score['accuracy']:.1f}" + ("" if stderr is None else f"±{100 * stderr:.1f}")


def _title(result: Result) -> str:
    data, merging = result["data"], "merging " + ("on" if result["settings"]["merging"] else "off")
    if not result["config"]["model"]["merge_layers"]:
        merging = "no merging layers"
    return f"{data['name']} [{data['split']}]: {data['videos']} videos, {merging}"


def _measured(result: Result) -> list[str]:
    return [key for key in COLUMNS if key in result["macro"]]


def _points(rows: Mapping[str, Any], key: str) -> tuple[list[int], list[float], list[float]]:
    """Positions, accuracies and standard errors, in percent, of the rows that have a column."""
    found = [
        (i, 100 * row[key]["accuracy"], 100 * (row[key]["stderr"] or 0.0))
        for i, row in enumerate(rows.values())
        if row.get(key) and row[key]["accuracy"] is not None
    ]
    return [x for x, _, _ in found], [y for _, y, _ in found], [e for _, _, e in found]
