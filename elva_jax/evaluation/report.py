"""An evaluation's result for people: a table on the terminal, a JSON file, a bar chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = {
    "open": "open",
    "likelihood": "options",
    "letter": "letter",
    "blind": "blind",
    "any_object": "any object",
    "single_frame": "one frame",
}
BASELINES = ("blind", "any_object", "single_frame")


def _cell(score: Mapping[str, Any] | None) -> str:
    """`83.1±1.6` in per cent; a dash where nothing was measured."""
    if score is None or score["accuracy"] is None:
        return "–"
    stderr = score["stderr"]
    return f"{100 * score['accuracy']:.1f}" + ("" if stderr is None else f"±{100 * stderr:.1f}")


def _title(result: Mapping[str, Any]) -> str:
    data = result["data"]
    return f"{data['name']} [{data['split']}]: {data['videos']} videos, merging {'on' if result['settings']['merging'] else 'off'}"


def _measured(result: Mapping[str, Any]) -> list[str]:
    return [key for key in COLUMNS if key in result["macro"]]


def table(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints `build_table` on the terminal."""
    (console or Console()).print(build_table(result))


def build_table(result: Mapping[str, Any]) -> Table:
    """Accuracy per family and macro mean, in per cent with one standard error; baselines to the right."""
    data = result["data"]
    out = Table(
        title=Text(_title(result)),
        caption=Text(caption(result)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    out.add_column("family", no_wrap=True)
    out.add_column("n", justify="right")
    keys = _measured(result)
    for key in keys:
        out.add_column(
            COLUMNS[key], justify="right", no_wrap=True, style="dim" if key in BASELINES else None
        )
    for family, row in result["families"].items():
        out.add_row(family, str(row["count"]), *(_cell(row.get(key)) for key in keys))
    out.add_section()
    out.add_row(
        "macro",
        str(data["questions"]),
        *(_cell(result["macro"][key]) for key in keys),
        style="bold",
    )
    return out


def caption(result: Mapping[str, Any]) -> str:
    """What the columns mean and how many answers could not be used, in a few lines of plain text."""
    answers, data = result["answers"], result["data"]
    lines = [
        "open: written answer, exact match · options: likeliest of the options' texts · letter: likeliest letter after listed options",
        f"{answers['total']} written answers: {answers['empty']} empty, {answers['unfinished']} cut off, "
        f"{answers['outside_options']} equal to none of the options; all of them count as asked",
    ]
    if (kept := result["tokens"]["visual_kept"]) is not None:
        lines.append(f"{100 * kept:.0f} % of the visual tokens remain, averaged over layers")
    if data["unreadable"]:
        lines.append(
            f"{len(data['unreadable'])} videos could not be read: their questions count as wrong"
        )
    return "\n".join(lines)


def figure(result: Mapping[str, Any], path: str | Path) -> Path:
    """A bar chart of accuracy per family and macro: our scores as bars with one standard error, baselines as marks beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
        x, y, e = _points(rows, key)
        axes.bar(
            [v + (i - (len(bars) - 1) / 2) * width for v in x],
            y,
            width,
            yerr=e,
            label=COLUMNS[key],
            error_kw={"lw": 0.8},
        )
    for key, marker in zip(marks, ("_", "x", "+"), strict=False):
        x, y, _ = _points(rows, key)
        axes.plot(
            x,
            y,
            linestyle="none",
            marker=marker,
            markersize=11,
            markeredgewidth=1.8,
            color="black",
            label=COLUMNS[key],
        )
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    axes.set_title(_title(result))
    axes.legend(
        ncols=len(keys), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False
    )
    fig.savefig(path, dpi=150)
    return path


def _points(rows: Mapping[str, Any], key: str) -> tuple[list[int], list[float], list[float]]:
    """Abscissae, accuracies and standard errors in per cent of the rows where `key` was measured."""
    found = [
        (i, row[key])
        for i, row in enumerate(rows.values())
        if row.get(key) and row[key]["accuracy"] is not None
    ]
    x = [i for i, _ in found]
    return (
        x,
        [100 * score["accuracy"] for _, score in found],
        [100 * (score["stderr"] or 0.0) for _, score in found],
    )
