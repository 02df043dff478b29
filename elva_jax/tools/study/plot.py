"""The figure of a study: macro accuracy of each variant with its interval and its seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.tools.study.report import NAMES, columns
from elva_jax.tools.study.statistics import MACRO
from elva_jax.utils.read import open_output


def save(summary: Mapping[str, Any], path: Path) -> Path:
    """Draws a panel per column: intervals as lines, means as squares, seeds as dots."""
    # matplotlib is an extra.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    variants = summary["variants"]
    figure = Figure(figsize=(10, 1.4 + 0.4 * len(variants)), layout="constrained")
    FigureCanvasAgg(figure)
    names = columns(summary)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, names, strict=True):
        for place, variant in enumerate(variants.values()):
            macro = variant["accuracy"][column][MACRO]
            seeds = list(macro["by_seed"].values())
            axes.hlines(place, macro["low"], macro["high"], color="C0", linewidth=1)
            axes.plot(seeds, [place] * len(seeds), "o", color="C1", markersize=3)
            axes.plot(macro["value"], place, "s", color="C0", markersize=5)
        axes.set_xlabel(f"macro accuracy, {NAMES[column]}, percent")
        axes.grid(visible=True, axis="x", linewidth=0.4)
    panels[0].set_yticks(range(len(variants)), list(variants), fontsize=8)
    panels[0].invert_yaxis()
    with open_output(path, "--out", "wb") as file:
        figure.savefig(file, dpi=150, format="png")
    return path
