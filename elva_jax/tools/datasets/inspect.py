"""Statistics of a data set, counted record by record, and their presentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elva_jax.data.example import Example
from elva_jax.data.safe_read import Rejected
from elva_jax.tools.datasets.build.prepare import Preparation, TokenSettings
from elva_jax.tools.datasets.build.statistics import Histogram, Statistics, most
from elva_jax.utils.files import open_atomic
from elva_jax.utils.json import save_json

ROWS = (
    ("turns of a record", "turns"),
    ("seconds of a video", "seconds"),
    ("longest edge, pixels", "longest_edge"),
    ("text tokens", "text_tokens"),
    ("visual tokens", "visual_tokens"),
    ("tokens of a record", "tokens"),
)
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOP = 5  # resolutions and reasons listed


def spread(total: int, limit: int) -> Sequence[int]:
    """At most `limit` numbers evenly spread over 0 … total - 1; a limit of 0 takes all."""
    if not 0 < limit < total:
        return range(total)
    return [(2 * k + 1) * total // (2 * limit) for k in range(limit)]


def count(
    examples: Sequence[Example],
    settings: TokenSettings,
    indices: Sequence[int],
    advance: Callable[[int], None] = lambda number: None,
) -> Statistics:
    """Counts records as `elva data build` does, without storing them."""
    preparation, statistics = Preparation(examples, settings), Statistics()
    for index in indices:
        found = preparation.measure(index)
        if isinstance(found, Rejected):
            statistics.reject(found.key, found.reason)
        else:
            statistics.add(found)
        advance(1)
    return statistics


def table(statistics: Statistics, settings: TokenSettings) -> str:
    """Formats statistics as text."""
    kinds = sorted(statistics.media.items(), reverse=True)
    media = ", ".join(f"{number:,} {kind}s" for kind, number in kinds) or "no media"
    size = f"{statistics.bytes / 2**30:.3f} GiB"
    headings = ("least", *(f"{share:.0%}" for share in SHARES), "most", "mean")
    lines = [
        f"{statistics.records:,} records, {statistics.rejected.total():,} rejected",
        f"{media}, {size}, {statistics.seconds.total / 3600:,.2f} hours of video",
        "",
        f"{'':22}" + "".join(f"{heading:>10}" for heading in headings),
    ]
    for label, name in ROWS:
        histogram = getattr(statistics, name)
        if histogram.count:
            cells = "".join(f"{_number(value):>10}" for value in _values(histogram))
            lines.append(f"{label:22}{cells}")
    lines += [_describe(settings), ""]
    if statistics.resolutions:
        found = most(statistics.resolutions)
        shown = [
            f"{number:,} others" if size == "others" else f"{number:,} of {size}"
            for size, number in found[:TOP]
        ]
        lines.append(f"resolutions: {', '.join(shown)}{', …' if len(found) > TOP else ''}")
    for reason, number in most(statistics.rejected)[:TOP]:
        lines.append(f"rejected: {number:,} x {reason} (first: {statistics.first[reason]})")
    return "\n".join(lines)


def _values(histogram: Histogram) -> list[float]:
    quantiles = [histogram.quantile(share) for share in SHARES]
    return [histogram.low, *quantiles, histogram.high, histogram.total / histogram.count]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _describe(settings: TokenSettings) -> str:
    text = "text is not counted without --tokenizer"
    if settings.tokenizer:
        text = f"text by {settings.tokenizer}"
    edges = f"a longest edge of {settings.longest_edge} and patches of {settings.patch_size} pixels"
    return f"(visual tokens at {settings.frames} frames, {edges}; {text})"


def write(
    out: Path,
    name: str,
    statistics: Statistics,
    settings: TokenSettings,
    examples: Sequence[Example],
) -> list[Path]:
    """Writes statistics.json, frames of `examples`, and a histogram of lengths; returns the paths.

    Args:
      out: folder to write to.
      name: of the data set.
      statistics: of the data set.
      settings: how its tokens were counted.
      examples: shown on the sheet of frames.
    """
    from elva_jax.tools.datasets import pictures  # matplotlib is an optional extra

    out.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {
        "name": name,
        "tokens_at": dataclasses.asdict(settings),
        "statistics": statistics.to_json(),
    }
    histograms = {
        "text": statistics.text_tokens,
        "visual": statistics.visual_tokens,
        "together": statistics.tokens,
    }
    sheet = out / "sheet.png"
    with open_atomic(sheet, "wb") as file:
        pictures.sheet(examples).save(file, "PNG")
    title = f"{name}: {statistics.records:,} records\n{_describe(settings)}"
    return [
        save_json(numbers, out / "statistics.json"),
        sheet,
        pictures.lengths(histograms, title, out / "tokens.png"),
    ]
