"""Which record comes when: shuffled, sharded, repeated and weighted, as a pure function of a position.

Every position of the endless stream names one record, so that a position is all that a restart needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import grain
from ml_collections import ConfigDict

from elva_jax.data import sources
from elva_jax.data.example import Example
from elva_jax.errors import DataError


class Mixture:
    """The opened sources of a stage; picklable, so that workers can hold one."""

    def __init__(self, config: ConfigDict, stage_name: str):
        entries = config.stages[stage_name].data.mixture
        self.labels = list(entries)
        self.names = [entries[label].name for label in self.labels]
        self.tasks = [tuple(entries[label].tasks) for label in self.labels]
        self.weights = [float(entries[label].weight) for label in self.labels]
        self.records = [sources.open_examples(entries[label], config.data_dir) for label in self.labels]

    def __len__(self) -> int:
        return sum(len(records) for records in self.records)

    def example(self, source: int, index: int) -> Example:
        """Reads one record of one source."""
        return self.records[source][index]

    def key(self, source: int, index: int) -> str:
        """Names a record that could not even be read."""
        return f"{self.labels[source]}[{index}]"

    def fingerprint(self) -> list[list]:
        """What the order depends on, JSON-able."""
        return [[n, list(t), w, len(r)] for n, t, w, r in zip(self.names, self.tasks, self.weights, self.records, strict=True)]


def stage_seed(seed: int, *words: str | int) -> int:
    """A 31-bit seed for one purpose, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def stream(lengths: Sequence[int], weights: Sequence[float], seed: int, process_index: int = 0, process_count: int = 1) -> grain.MapDataset:
    """The endless order of (source, record index) pairs: shuffle, shard, repeat, mix.

    Each epoch of a source is shuffled anew; processes read disjoint slices of it; weights hold in every stretch of the stream.

    Raises:
      DataError: a source with fewer records than there are processes.
    """
    parts = []
    for k, length in enumerate(lengths):
        if length < process_count:
            raise DataError(f"source {k} of the mixture has {length} records, fewer than the {process_count} processes")
        part = grain.MapDataset.range(length).seed(stage_seed(seed, k)).shuffle()[process_index::process_count].repeat()
        parts.append(part.map(_Tag(k)))
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


class _Tag:
    """Adds the source's number to a record index (a class, because workers need it pickled)."""

    def __init__(self, source: int):
        self.source = source

    def __call__(self, index: int) -> tuple[int, int]:
        return self.source, int(index)


def examples_per_epoch(config: ConfigDict, stage_name: str) -> int:
    """Examples in one pass over a stage's mixture, over all processes: the records of all its sources."""
    return len(Mixture(config, stage_name))
