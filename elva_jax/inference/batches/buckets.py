"""Batches of rows of similar length, with few shapes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from elva_jax.inference.batches.rows import Row
from elva_jax.inference.batching import grid_batch, grid_length

MOST_WAITING = 4  # batches' worth of queries that wait for others of their length


@dataclass(frozen=True, order=True)
class Key:
    """What the rows of a batch have in common."""

    prefix: int  # padded length
    width: int  # columns per row
    kind_number: int  # of the rows' kind, in the order of their appearance

    @property
    def programs(self) -> tuple[int, int]:
        """Equal for rows that longer ones can take along."""
        return self.kind_number, self.width


class BucketLengths:
    """Padded lengths that never shrink; the bucket fixes the prefix and the number of columns."""

    def __init__(self, prefix: int, questions: int) -> None:
        self._largest = {"prefix": prefix, "questions": questions}

    def __call__(self, name: str, tokens: int, smallest: int = 16) -> int:
        """The padded length for `tokens`; `name` says which length it is."""
        if tokens > self._largest.get(name, 0):
            self._largest[name] = grid_length(tokens, smallest)
        return self._largest[name]


class Shapes:
    """The padded lengths of one bucket's batches, by what is done: prefill, writing, scoring."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._lengths: dict[str, BucketLengths] = {}

    def __getitem__(self, name: str) -> BucketLengths:
        key = self._key
        return self._lengths.setdefault(name, BucketLengths(key.prefix, key.width))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that are asked together, padded to `size` rows."""

    rows: tuple[Row, ...]
    size: int
    shapes: Shapes


class Buckets:
    """Collects rows until there are enough of similar length for a batch.

    Args:
      batch_size: most queries of a batch.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._waiting: dict[Key, list[Row]] = {}
        self._shapes: dict[Key, Shapes] = {}
        self._kinds: dict[Hashable, int] = {}

    def add(self, row: Row) -> Iterator[Batch]:
        """Adds a row; yields a batch if one is full, or if too many rows wait."""
        kind = self._kinds.setdefault(row.kind, len(self._kinds))
        key = Key(grid_length(row.prefix_tokens), row.width, kind)
        self._waiting.setdefault(key, []).append(row)
        if len(self._waiting[key]) >= self._rows(key):
            yield self._batch(key, self._waiting.pop(key))
            return
        waiting = sum(key.width * len(rows) for key, rows in self._waiting.items())
        if waiting >= MOST_WAITING * self._batch_size:
            largest = max(self._waiting, key=lambda key: len(self._waiting[key]) / self._rows(key))
            yield self._batch(largest, self._waiting.pop(largest))

    def flush(self) -> Iterator[Batch]:
        """The batches of all rows that wait; shorter ones fill up those of longer ones.

        They take the programs of a bucket of longer rows, where there has been one.
        """
        alike: dict[tuple[int, int], list[Key]] = {}
        for key in sorted(self._waiting, reverse=True):
            alike.setdefault(key.programs, []).append(key)
        for keys in alike.values():
            rows = [(key, row) for key in keys for row in self._waiting.pop(key)]
            size = self._rows(keys[0])
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                yield self._batch(self._longer(part[0][0]), [row for _, row in part])

    def _longer(self, key: Key) -> Key:
        """The shortest bucket that has had a batch and holds the rows of `key`, or else `key`."""
        holds = [
            known
            for known in self._shapes
            if known.prefix >= key.prefix and known.programs == key.programs
        ]
        return min(holds, default=key)

    def _rows(self, key: Key) -> int:
        """Rows of a full batch, a power of two as `build_rows` pads to."""
        return 1 << max(self._batch_size // key.width, 1).bit_length() - 1

    def _batch(self, key: Key, rows: Sequence[Row]) -> Batch:
        """A batch with the shapes of a bucket, whose programs may exist for the full size."""
        full = self._rows(key)
        size = full if key in self._shapes or len(rows) == full else grid_batch(len(rows))
        shapes = self._shapes.get(key) or Shapes(key)
        if size == full:
            self._shapes[key] = shapes
        return Batch(rows=tuple(rows), size=size, shapes=shapes)
