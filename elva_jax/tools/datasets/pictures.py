"""Pictures of a data set: frames of some records with their text, and a histogram of lengths."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from elva_jax.data.conversation import question_text
from elva_jax.data.example import Example
from elva_jax.errors import VideoError
from elva_jax.tools.datasets.build.statistics import Histogram
from elva_jax.utils.files import open_atomic
from elva_jax.video.read import read_frames
from elva_jax.video.resize import LazyFrame

ROW = 144  # height of a row in pixels
FRAMES = 6  # most frames per record
COLUMNS = 64  # characters per line
LINE = 16  # height of a line in pixels
GAP = 6  # pixels
BARS = 40  # most bars of a histogram


def sheet(examples: Sequence[Example]) -> Image.Image:
    """One row per example: frames of its media, and the beginning of its conversation."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LINE * 3 // 4)
    rows = [(_frames(example), _text(example)) for example in examples]
    left = max((sum(tile.width + GAP for tile in tiles) for tiles, _ in rows), default=0) + GAP
    picture = Image.new("RGB", (left + COLUMNS * LINE // 2, len(rows) * (ROW + GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for number, (tiles, text) in enumerate(rows):
        top, x = GAP + number * (ROW + GAP), GAP
        for tile in tiles:
            picture.paste(tile, (x, top))
            x += tile.width + GAP
        for k, line in enumerate(text):
            draw.text((left, top + k * LINE), line, fill="black", font=font)
    return picture


def _frames(example: Example) -> list[Image.Image]:
    """Some frames of each readable medium, all of one height."""
    tiles: list[Any] = []
    each = max(1, FRAMES // max(len(example.media), 1))
    for medium in example.media[:FRAMES]:
        count = each if medium.kind == "video" else 1
        with contextlib.suppress(VideoError):
            tiles += read_frames(
                medium.source, num_frames=count, transform=_tile, span=medium.span
            ).pixels
    return tiles


def _tile(picture: LazyFrame) -> Image.Image:
    width = max(1, min(round(picture.width * ROW / picture.height), 2 * ROW))
    return Image.fromarray(picture.at((ROW, width)))


def _text(example: Example) -> list[str]:
    """The conversation, cut to the lines that fit into a row."""
    said = [f"[{example.key}]", *([f"system: {example.system}"] if example.system else [])]
    for turn in example.turns:
        said += [f"Q: {question_text(example, turn)}", f"A: {turn.answer}"]
    lines = [line for text in said for line in textwrap.wrap(" ".join(text.split()), COLUMNS)]
    most = ROW // LINE
    return lines if len(lines) <= most else [*lines[: most - 1], "…"]


def lengths(histograms: Mapping[str, Histogram], title: str, path: str | Path) -> Path:
    """Draws histograms of the tokens per record, and returns the path of the PNG.

    Args:
      histograms: by name; empty ones are left out.
      title: of the figure.
      path: file to write.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = {name: histogram for name, histogram in histograms.items() if histogram.count}
    low = min((max(histogram.low, 1) for histogram in shown.values()), default=1)
    high = max((histogram.high for histogram in shown.values()), default=1)
    edges = np.geomspace(low, max(high, low * 2) * 1.001, BARS + 1)
    for name, histogram in shown.items():
        heights = np.zeros(BARS)
        for value, number in histogram.bins.items():
            bar = int(np.searchsorted(edges, value, side="right")) - 1
            heights[min(max(bar, 0), BARS - 1)] += number
        label = f"{name} (median {histogram.quantile(0.5):,.0f}, longest {histogram.high:,})"
        axes.stairs(heights, edges, label=label, fill=True, alpha=0.45)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:,.0f}")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_xlabel("tokens of a record")
    axes.set_ylabel("records")
    axes.set_title(title, fontsize=9, wrap=True, parse_math=False)
    if shown:
        axes.legend(fontsize=8, frameon=False)
    path = Path(path)
    with open_atomic(path, "wb") as file:
        figure.savefig(file, dpi=150)
    return path
