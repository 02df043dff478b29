"""What is in a data set: counted record by record, or read from the manifest of a built one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elva_jax.data.example import Example
from elva_jax.data.safe_read import Rejected
from elva_jax.tools.datasets.build.prepare import Counting, Preparation
from elva_jax.tools.datasets.build.statistics import Histogram, Statistics, most

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
    """At most `limit` numbers evenly spread over 0 … total - 1; 0 takes all."""
    return (
        range(total)
        if not 0 < limit < total
        else [(2 * k + 1) * total // (2 * limit) for k in range(limit)]
    )


def count(
    examples: Sequence[Example],
    counting: Counting,
    indices: Sequence[int],
    advance: Callable[[int], None] = lambda number: None,
) -> Statistics:
    """Counts records as `elva data build` would, without keeping anything of them."""
    preparation, statistics = Preparation(examples, counting), Statistics()
    for index in indices:
        found = preparation.measure(index)
        if isinstance(found, Rejected):
            statistics.reject(found.key, found.reason)
        else:
            statistics.add(found)
        advance(1)
    return statistics


def table(statistics: Statistics, counting: Counting) -> str:
    """The numbers in words and columns."""
    rejected = statistics.rejected.total()
    media = (
        ", ".join(
            f"{number:,} {kind}s" for kind, number in sorted(statistics.media.items(), reverse=True)
        )
        or "no media"
    )
    lines = [
        f"{statistics.records:,} records, {rejected:,} rejected",
        f"{media}, {statistics.bytes / 2**30:.3f} GiB, {statistics.seconds.total / 3600:,.2f} hours of video",
        "",
        f"{'':22}"
        + "".join(
            f"{name:>10}"
            for name in ("least", *(f"{share:.0%}" for share in SHARES), "most", "mean")
        ),
    ]
    for label, name in ROWS:
        histogram = getattr(statistics, name)
        if histogram.count:
            lines.append(
                f"{label:22}" + "".join(f"{_number(value):>10}" for value in _values(histogram))
            )
    lines += [_counted_for(counting), ""]
    if statistics.resolutions:
        found = most(statistics.resolutions)
        shown = [
            f"{number:,} of {size}" if size != "others" else f"{number:,} others"
            for size, number in found[:TOP]
        ]
        lines.append(f"resolutions: {', '.join(shown)}{', …' if len(found) > TOP else ''}")
    for reason, number in most(statistics.rejected)[:TOP]:
        lines.append(f"rejected: {number:,} x {reason} (first: {statistics.first[reason]})")
    return "\n".join(lines)


def _values(histogram: Histogram) -> list[float]:
    return [
        histogram.low,
        *(histogram.quantile(share) for share in SHARES),
        histogram.high,
        histogram.total / histogram.count,
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _counted_for(counting: Counting) -> str:
    text = (
        f"text by {counting.tokenizer}"
        if counting.tokenizer
        else "text is not counted without --tokenizer"
    )
    edges = f"a longest edge of {counting.longest_edge} and patches of {counting.patch_size} pixels"
    return f"(visual tokens at {counting.frames} frames, {edges}; {text})"


def title(name: str, statistics: Statistics, counting: Counting) -> str:
    """Of the histogram."""
    return f"{name}: {statistics.records:,} records\n{_counted_for(counting)}"


def write(
    out: Path, name: str, statistics: Statistics, counting: Counting, examples: Sequence[Example]
) -> list[Path]:
    """Writes statistics.json, the sheet of frames of `examples`, and the histogram of lengths; returns their paths."""
    from elva_jax.tools.datasets import pictures
    from elva_jax.utils.json import save_json

    out.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {
        "name": name,
        "tokens_at": counting._asdict(),
        "statistics": statistics.to_json(),
    }
    histograms = {
        "text": statistics.text_tokens,
        "visual": statistics.visual_tokens,
        "together": statistics.tokens,
    }
    sheet = out / "sheet.png"
    pictures.sheet(examples).save(sheet)
    return [
        save_json(numbers, out / "statistics.json"),
        sheet,
        pictures.lengths(histograms, title(name, statistics, counting), out / "tokens.png"),
    ]
