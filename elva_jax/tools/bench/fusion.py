"""`elva bench fusion`: how much each of MERV's encoders takes part, by content of the video."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elva_jax.commands import flags, many
from elva_jax.tools.bench.table import text_table

HELP = """\
Reads videos of several groups, such as motion, text and static pictures, and averages the weight
that MERV's fusion gives each encoder, by group, with 95 % intervals of a bootstrap over videos.
Each encoder is compared with its mean over all groups, as in MERV's paper (arXiv 2501.01426).

The videos are a folder with a folder for each group, or a .jsonl with a line for each video:
  {"video": "clips/a.mp4", "group": "motion"}
`elva data contents` renders such a folder. The figure needs matplotlib: pip install
"elva_jax[plots]".

examples:
  elva bench fusion --checkpoint runs/merv --videos contents
  elva bench fusion --checkpoint runs/merv --videos clips.jsonl --figure fusion.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    flags.add_checkpoint(parser)
    add, text = parser.add_argument, "a folder with a folder for each group, or a .jsonl"
    add("--videos", type=Path, required=True, metavar="DIR|FILE.jsonl", help=text)
    text = "read at most the first N videos of each group"
    add("--limit", type=flags.positive, metavar="N", help=text)
    kind, text = flags.output_file("--figure"), "draw the weights here"
    add("--figure", type=kind, metavar="FILE.png", help=text)
    flags.add_mesh(parser)


@flags.library_notices()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Reads every video and collects its weights.

    Raises:
      ConfigError: a model without fusion weights.
      DataError: a list of videos that cannot be read.
      VideoError: a video that cannot be read.
    """
    import elva_jax

    if args.figure:
        check_figure(args.figure)
    from elva_jax.tools.bench.fusion_groups import read_groups, summarize

    groups = {name: files[: args.limit] for name, files in read_groups(args.videos).items()}
    elva_jax.enable_compilation_cache()
    model = elva_jax.load(args.checkpoint, mesh=flags.open_mesh(args))
    found: list[dict[str, Any]] = []
    with many.progress("videos") as report:
        for group, files in groups.items():
            for number, file in enumerate(files, start=1):
                (weights,) = model.fusion_weights(file)
                found.append({"group": group, "video": str(file), "weights": weights})
                report(group, number, len(files))
    rows = [
        {"group": group, "videos": len(files), "encoders": summarize(_of(found, group))}
        for group, files in groups.items()
    ]
    everything = summarize([each["weights"] for each in found])
    result = {
        "bench": "fusion",
        "checkpoint": str(args.checkpoint),
        "groups": rows,
        "all": {"videos": len(found), "encoders": everything},
        "videos": found,
    }
    if args.figure:
        draw(result, args.figure)
    return result


def _of(found: list[dict[str, Any]], group: str) -> list[dict[str, float]]:
    return [each["weights"] for each in found if each["group"] == group]


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    everything = report["all"]["encoders"]
    rows: list[list[str] | None] = []
    for row in report["groups"]:
        cells = []
        for name, of in row["encoders"].items():
            cells += [_percent(of), f"{100 * (of['mean'] - everything[name]['mean']):+.1f}"]
        rows.append([row["group"], str(row["videos"]), *cells])
    total = [cell for of in everything.values() for cell in (_percent(of), "")]
    rows += [None, ["all", str(report["all"]["videos"]), *total]]
    columns = ["group", "videos"]
    for name in everything:
        columns += [f"{name} %", "against all"]
    note = "means over videos; in brackets, 95 % intervals of a bootstrap over videos"
    return f"Weights of the encoders; {note}\n\n{text_table(columns, rows)}"


def _percent(of: dict[str, Any]) -> str:
    mean = f"{100 * of['mean']:.1f}"
    if of["low"] is None:
        return mean
    return f"{mean} [{100 * of['low']:.1f}, {100 * of['high']:.1f}]"


def check_figure(path: Path) -> None:
    """Checks before any work that a figure can be drawn in that file.

    Raises:
      ConfigError: it is no picture.
      ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from elva_jax.errors import ConfigError
    from elva_jax.utils.failures import repr_path

    if path.suffix[1:].lower() not in FigureCanvasAgg.get_supported_filetypes():
        raise ConfigError(f"--figure {repr_path(path)}: is no picture; name a .png, .svg or .pdf")


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws the mean weight of every encoder by group, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from elva_jax.utils.read import open_output

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names, rows = list(report["all"]["encoders"]), report["groups"]
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        of = [row["encoders"][name] for name in names]
        left = [i + (number - (len(rows) - 1) / 2) * width for i in range(len(names))]
        below = [0 if each["low"] is None else each["mean"] - each["low"] for each in of]
        above = [0 if each["high"] is None else each["high"] - each["mean"] for each in of]
        means = [each["mean"] for each in of]
        label = f"{row['group']} ({row['videos']})"
        axes.bar(left, means, width, yerr=(below, above), label=label, error_kw={"capsize": 2})
    axes.set_xticks(range(len(names)), names)
    axes.axhline(1 / len(names), color="gray", linewidth=0.8, linestyle="--")
    axes.set_ylabel("weight in the fusion")
    axes.legend(title="group (videos)", frameon=False)
    with open_output(path, "--figure", "wb") as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=100)
