"""What is counted of a data set: sums and histograms that are merged part by part, never a list of its records."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from elva_jax.tools.datasets.build.media import Size

QUANTILES = (5, 25, 50, 75, 95, 99)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
REASONS = 100  # different reasons counted apart
LISTED = 50  # most frequent resolutions in a summary


class Measured(NamedTuple):
    """What is counted of one example."""

    kinds: Sequence[str]  # video | image, of each medium
    sizes: Sequence[Size]
    turns: int
    bytes: int  # of its media as they are kept
    text_tokens: int | None  # None without a tokenizer
    visual_tokens: int


class Histogram:
    """Numbers from 0, each rounded to three digits, with their exact count, sum and extremes: at most 900 bins a power of ten."""

    def __init__(self):
        self.count, self.total, self.low, self.high = 0, 0, math.inf, 0
        self.bins: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Counts a number."""
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)
        self.bins[float(f"{value:.2e}")] += 1

    def merge(self, other: Histogram) -> None:
        """Counts what another one has counted."""
        self.count += other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.bins.update(other.bins)

    def quantile(self, share: float) -> float:
        """The least number that `share` of all do not exceed, to three digits; 0 of no numbers."""
        left = share * self.count
        for value in sorted(self.bins):
            left -= self.bins[value]
            if left <= 0:
                return min(max(value, self.low), self.high)
        return self.high

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able, with mean and quantiles for a reader."""
        if not self.count:
            return {"count": 0}
        return {
            "count": self.count,
            "total": self.total,
            "min": self.low,
            "max": self.high,
            "mean": self.total / self.count,
            "quantiles": {f"{q}%": self.quantile(q / 100) for q in QUANTILES},
            "bins": {f"{value:g}": self.bins[value] for value in sorted(self.bins)},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Histogram:
        """What `to_json` gave."""
        self = cls()
        if value["count"]:
            self.count, self.total, self.low, self.high = (
                value[name] for name in ("count", "total", "min", "max")
            )
            self.bins = Counter({float(bin): number for bin, number in value["bins"].items()})
        return self


def most(counted: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, of equals by name."""
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


HISTOGRAMS = ("turns", "seconds", "longest_edge", "text_tokens", "visual_tokens", "tokens")


@dataclasses.dataclass
class Statistics:
    """Of the examples of a data set or a part of it."""

    records: int = 0
    bytes: int = 0  # of media
    media: Counter[str] = dataclasses.field(default_factory=Counter)  # by kind
    resolutions: Counter[str] = dataclasses.field(
        default_factory=Counter
    )  # "640x360", of each medium
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason
    first: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # reason -> the first such record's key
    turns: Histogram = dataclasses.field(default_factory=Histogram)  # of an example
    seconds: Histogram = dataclasses.field(default_factory=Histogram)  # of a video
    longest_edge: Histogram = dataclasses.field(default_factory=Histogram)  # of a medium
    text_tokens: Histogram = dataclasses.field(default_factory=Histogram)  # of an example
    visual_tokens: Histogram = dataclasses.field(default_factory=Histogram)
    tokens: Histogram = dataclasses.field(default_factory=Histogram)

    def add(self, example: Measured) -> None:
        """Counts an example."""
        self.records += 1
        self.bytes += example.bytes
        self.turns.add(example.turns)
        for kind, size in zip(example.kinds, example.sizes, strict=True):
            self.media[kind] += 1
            self.resolutions[f"{size.width}x{size.height}"] += 1
            self.longest_edge.add(max(size.height, size.width))
            if kind == "video":
                self.seconds.add(size.seconds)
        self.visual_tokens.add(example.visual_tokens)
        if example.text_tokens is not None:
            self.text_tokens.add(example.text_tokens)
            self.tokens.add(example.text_tokens + example.visual_tokens)

    def reject(self, key: str, reason: str, number: int = 1) -> None:
        """Counts records without an example; reasons that differ in numbers alone count as one."""
        reason = NUMBER.sub("#", reason)
        reason = (
            reason if reason in self.rejected or len(self.rejected) < REASONS else "other reasons"
        )
        self.rejected[reason] += number
        self.first.setdefault(reason, key)

    def merge(self, other: Statistics) -> None:
        """Counts what was counted of a later part."""
        self.records += other.records
        self.bytes += other.bytes
        self.media.update(other.media)
        self.resolutions.update(other.resolutions)
        for reason, number in other.rejected.items():
            self.reject(other.first[reason], reason, number)
        for name in HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name))

    def to_json(self, listed: int | None = None) -> dict[str, Any]:
        """Everything, JSON-able; `listed`: of the resolutions the most frequent ones, and how many more there are."""
        shown = most(self.resolutions)[:listed]
        return {
            "records": self.records,
            "rejected": {
                reason: {"records": number, "first": self.first[reason]}
                for reason, number in most(self.rejected)
            },
            "media": dict(sorted(self.media.items())),
            "bytes": self.bytes,
            "resolutions": {
                **dict(shown),
                **(
                    {"others": rest}
                    if (rest := self.resolutions.total() - sum(n for _, n in shown))
                    else {}
                ),
            },
            **{name: getattr(self, name).to_json() for name in HISTOGRAMS},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Statistics:
        """What `to_json` gave."""
        return cls(
            records=value["records"],
            bytes=value["bytes"],
            media=Counter(value["media"]),
            resolutions=Counter(value["resolutions"]),
            rejected=Counter(
                {reason: entry["records"] for reason, entry in value["rejected"].items()}
            ),
            first={reason: entry["first"] for reason, entry in value["rejected"].items()},
            **{name: Histogram.from_json(value[name]) for name in HISTOGRAMS},
        )
