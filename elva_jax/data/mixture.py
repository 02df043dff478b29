"""The order of records: shuffled, sharded, repeated and weighted, as a function of a position.

Every position of the endless stream determines one record, so a restart needs only a position.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import grain

from elva_jax.config.mixtures import parse_sampling
from elva_jax.config.schema import Config
from elva_jax.data import sources
from elva_jax.data.example import Example
from elva_jax.errors import DataError
from elva_jax.utils.seeds import stage_seed

MIN_SHARE = 10_000  # the least integer share by size, so that rounding changes it by 0.01 % at most


class Mixture:
    """The opened sources of a stage; it can be pickled and sent to workers.

    Raises:
      DataError: data is missing or malformed, or a source has fewer records than requested.
    """

    def __init__(self, config: Config, stage_name: str):
        data = config.stages[stage_name].data
        entries = data.mixture
        sources.check_files(entries, config.data_root, f"stages.{stage_name}.data.mixture")
        self.labels = list(entries)
        self.names = [entries[label].name for label in self.labels]
        self.tasks = [tuple(entries[label].tasks) for label in self.labels]
        self.weights = [float(entries[label].weight) for label in self.labels]
        self.sampling = [entries[label].sampling for label in self.labels]
        self.epochs = [float(entries[label].epochs) for label in self.labels]
        self.temperature = data.temperature
        self.records = [
            sources.open_examples(entries[label], config.data_dir, config.data_root)
            for label in self.labels
        ]
        for label, records in zip(self.labels, self.records, strict=True):
            sources.check_media(records, f"stages.{stage_name}.data.mixture.{label}")
        self.used = []
        for label, sampling, records in zip(self.labels, self.sampling, self.records, strict=True):
            # The seed depends on the label, not on the stage, so that stages with a source of the
            # same name use the same records.
            seed = stage_seed(config.seed, "sampling", label)
            self.used.append(SampledIndices(sampling, len(records), seed, label))

    def __len__(self) -> int:
        return round(
            sum(epochs * len(used) for epochs, used in zip(self.epochs, self.used, strict=True))
        )

    @property
    def lengths(self) -> list[int]:
        """Number of records used from each source."""
        return [len(used) for used in self.used]

    @property
    def shares(self) -> list[int]:
        """Relative frequencies of the sources among the examples."""
        if not self.temperature:
            return [int(weight * (100 / min(self.weights))) for weight in self.weights]
        sizes = [epochs * len(used) for epochs, used in zip(self.epochs, self.used, strict=True)]
        shares = [
            weight * size ** (1 / self.temperature)
            for weight, size in zip(self.weights, sizes, strict=True)
        ]
        # Scaling by an integer keeps integer ratios exact, so that an epoch by size reads every
        # record once.
        scale = math.ceil(MIN_SHARE / min(shares))
        return [round(share * scale) for share in shares]

    def example(self, source: int, index: int) -> Example:
        """Reads one of the used records of a source."""
        return self.records[source][self.used[source][index]]

    def key(self, source: int, index: int) -> str:
        """The name of a record, without reading it."""
        return f"{self.labels[source]}[{self.used[source][index]}]"

    def fingerprint(self) -> list[list]:
        """The settings that determine the order, as JSON."""
        out = []
        for k, used in enumerate(self.used):
            sampling = [self.sampling[k]] if self.sampling[k] != "all" else []
            out.append([self.names[k], list(self.tasks[k]), self.weights[k], len(used), *sampling])
        return [*out, ["temperature", self.temperature, self.epochs]] if self.temperature else out


class SampledIndices(Sequence[int]):
    """The indices of the records that a sampling strategy selects, computed on demand.

    Args:
      sampling: the strategy; see `config.mixtures.parse_sampling`.
      total: number of records of the source.
      seed: seed of random selections.
      label: name of the source in messages.

    Raises:
      DataError: the strategy requests more records than the source has.
    """

    def __init__(self, sampling: str, total: int, seed: int, label: str):
        self._kind, self._total, self._seed = parse_sampling(sampling).kind, total, seed
        self._length = parse_sampling(sampling).count(total)
        if self._length > total:
            raise DataError(
                f"{label}: sampling = {sampling}, but it has {total} records; did you mean all?"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self._kind == "random":
            return grain.experimental.index_shuffle(
                index, max_index=self._total - 1, seed=self._seed, rounds=4
            )
        return index + (self._total - self._length if self._kind == "end" else 0)


def stream(
    lengths: Sequence[int],
    shares: Sequence[int],
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The endless order of (source, record index) pairs: shuffle, shard, repeat, mix.

    Each epoch of a source is shuffled differently. The processes read disjoint slices of it. Every
    part of the stream has the same shares of the sources.

    Raises:
      DataError: a source has fewer records than there are processes.
    """
    parts = []
    for k, length in enumerate(lengths):
        if length < process_count:
            raise DataError(
                f"source {k} of the mixture has {length} records, "
                f"fewer than the {process_count} processes"
            )
        part = (
            grain.MapDataset.range(length)
            .seed(stage_seed(seed, k))
            .shuffle()[process_index::process_count]
            .repeat()
        )
        parts.append(part.map(_Tag(k)))
    return parts[0] if len(parts) == 1 else grain.MapDataset.source(_Mixed(parts, shares))


class _Mixed:
    """Interleaves endless parts; in any interval each part is within two elements of its share.

    The shares are exact over as many elements as they add up to. The order equals that of
    `grain.MapDataset.mix`, which only supports shares that are multiples of 1/100.
    """

    def __init__(self, parts: Sequence[grain.MapDataset], shares: Sequence[int]):
        self._parts, self._shares = parts, shares

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        left = sum(self._shares)
        for part, share in zip(self._parts, self._shares, strict=True):
            before, after = -(-index * share // left), -(-(index + 1) * share // left)
            if after > before:
                return part[before]
            # The element belongs to a later part: count the elements that this part does not take.
            index, left = index - before, left - share
        raise AssertionError("the last part takes all remaining elements")


class _Tag:
    """Adds the index of the source to a record index; a class, because workers pickle it."""

    def __init__(self, source: int):
        self.source = source

    def __call__(self, index: int) -> tuple[int, int]:
        return self.source, int(index)
