"""Statistics of a data set: sums and histograms that merge, and never a list of its records."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.tools.datasets.build.media import Size

QUANTILES = (5, 25, 50, 75, 95, 99)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
REASONS = 100  # most different reasons counted separately
LISTED = 50  # resolutions in a summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of one example."""

    kinds: Sequence[str]  # video | image, for each medium
    sizes: Sequence[Size]
    turns: int
    bytes: int  # of its media as they are stored
    text_tokens: int | None  # None without a tokenizer
    visual_tokens: int


class Histogram:
    """Counts of non-negative numbers rounded to three digits: at most 900 bins per power of ten.

    Count, sum, smallest and largest number are exact.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: float = 0
        self.low: float = math.inf
        self.high: float = 0
        self.bins: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Counts a number."""
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)
        self.bins[float(f"{value:.2e}")] += 1

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram."""
        self.count += other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.bins.update(other.bins)

    def quantile(self, share: float) -> float:
        """The least number that `share` of all do not exceed, to three digits; 0 if empty."""
        left = share * self.count
        for value in sorted(self.bins):
            left -= self.bins[value]
            if left <= 0:
                return min(max(value, self.low), self.high)
        return self.high

    def to_json(self) -> dict[str, Any]:
        """All counts as JSON, with mean and quantiles for human readers."""
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
        """Restores the result of `to_json`."""
        self = cls()
        if value["count"]:
            self.count, self.total, self.low, self.high = (
                value[name] for name in ("count", "total", "min", "max")
            )
            self.bins = Counter({float(bin): number for bin, number in value["bins"].items()})
        return self


def most(counted: Counter[str]) -> list[tuple[str, int]]:
    """Sorted by frequency, then by name."""
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


HISTOGRAMS = ("turns", "seconds", "longest_edge", "text_tokens", "visual_tokens", "tokens")


@dataclasses.dataclass
class Statistics:
    """Statistics of the examples of a data set, or of a part of it."""

    records: int = 0
    bytes: int = 0  # of media
    media: Counter[str] = dataclasses.field(default_factory=Counter)  # by kind
    resolutions: Counter[str] = dataclasses.field(default_factory=Counter)  # by "WIDTHxHEIGHT"
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason
    first: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> first record's key
    turns: Histogram = dataclasses.field(default_factory=Histogram)  # per example
    seconds: Histogram = dataclasses.field(default_factory=Histogram)  # per video
    longest_edge: Histogram = dataclasses.field(default_factory=Histogram)  # per medium
    text_tokens: Histogram = dataclasses.field(default_factory=Histogram)  # per example
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
        """Counts rejected records; reasons that differ only in numbers count as the first one."""
        kinds = {NUMBER.sub("#", known): known for known in self.rejected}
        reason = kinds.get(NUMBER.sub("#", reason), reason)
        if reason not in self.rejected and len(self.rejected) >= REASONS:
            reason = "other reasons"
        self.rejected[reason] += number
        self.first.setdefault(reason, key)

    def merge(self, other: Statistics) -> None:
        """Adds the statistics of a later part."""
        self.records += other.records
        self.bytes += other.bytes
        self.media.update(other.media)
        self.resolutions.update(other.resolutions)
        for reason, number in other.rejected.items():
            self.reject(other.first[reason], reason, number)
        for name in HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name))

    def to_json(self, listed: int | None = None) -> dict[str, Any]:
        """All statistics as JSON.

        Args:
          listed: most resolutions that are listed; the others are summed up. None: no limit.
        """
        resolutions = dict(most(self.resolutions)[:listed])
        if rest := self.resolutions.total() - sum(resolutions.values()):
            resolutions["others"] = rest
        return {
            "records": self.records,
            "rejected": {
                reason: {"records": number, "first": self.first[reason]}
                for reason, number in most(self.rejected)
            },
            "media": dict(sorted(self.media.items())),
            "bytes": self.bytes,
            "resolutions": resolutions,
            **{name: getattr(self, name).to_json() for name in HISTOGRAMS},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Statistics:
        """Restores the result of `to_json`."""
        return cls(
            records=value["records"],
            bytes=value["bytes"],
            media=Counter(value["media"]),
            resolutions=Counter(value["resolutions"]),
            rejected=Counter({why: entry["records"] for why, entry in value["rejected"].items()}),
            first={why: entry["first"] for why, entry in value["rejected"].items()},
            **{name: Histogram.from_json(value[name]) for name in HISTOGRAMS},
        )
