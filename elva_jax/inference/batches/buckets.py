"""Batches of rows of similar length, with few shapes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from elva_jax.inference.batches.rows import Row
from elva_jax.inference.batching import grid_batch, grid_length

MOST_WAITING = 4  # batches' worth of queries that wait for others of their length
LONGER, MORE = 2, 4  # times its length and number are rows padded at most, to spare compilations


@dataclass(frozen=True)
class Key:
    """The sizes and settings that the rows of a batch have in common."""

    prefix: int  # padded length
    width: int  # columns per row
    kind: Hashable
    program: Hashable


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

    def __init__(self, prefix: int, width: int) -> None:
        self._prefix, self._width = prefix, width
        self._lengths: dict[str, BucketLengths] = {}

    def __getitem__(self, name: str) -> BucketLengths:
        return self._lengths.setdefault(name, BucketLengths(self._prefix, self._width))


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
        # Shapes that have been used, for each width and program: by prefix and number of rows.
        self._shapes: dict[tuple[int, Hashable], dict[tuple[int, int], Shapes]] = {}

    def add(self, row: Row) -> Iterator[Batch]:
        """Adds a row; yields a batch if one is full, or if too many rows wait."""
        key = Key(grid_length(row.prefix_tokens), row.width, row.kind, row.program)
        self._waiting.setdefault(key, []).append(row)
        if len(self._waiting[key]) >= self._rows(key):
            yield self._batch(key, self._waiting.pop(key))
            return
        waiting = sum(key.width * len(rows) for key, rows in self._waiting.items())
        if waiting >= MOST_WAITING * self._batch_size:
            largest = max(self._waiting, key=lambda key: len(self._waiting[key]) / self._rows(key))
            yield self._batch(largest, self._waiting.pop(largest))

    def flush(self) -> Iterator[Batch]:
        """The batches of all rows that wait; shorter ones fill up those of longer ones."""
        alike: dict[Hashable, list[Key]] = {}
        for key in sorted(self._waiting, key=lambda key: key.prefix, reverse=True):
            alike.setdefault((key.kind, key.width), []).append(key)
        for keys in alike.values():
            rows = [(key, row) for key in keys for row in self._waiting.pop(key)]
            size = self._rows(keys[0])
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                yield self._batch(part[0][0], [row for _, row in part])

    def _rows(self, key: Key) -> int:
        """Rows of a full batch, a power of two as `build_rows` pads to."""
        return 1 << max(self._batch_size // key.width, 1).bit_length() - 1

    def _batch(self, key: Key, rows: Sequence[Row]) -> Batch:
        """A batch with shapes that have been used before, where some hold the rows."""
        known, count = self._shapes.setdefault((key.width, key.program), {}), grid_batch(len(rows))
        holding = [
            (prefix, size)
            for prefix, size in known
            if key.prefix <= prefix <= LONGER * key.prefix and count <= size <= MORE * count
        ]
        prefix, size = min(holding, default=(key.prefix, count))
        shapes = known.setdefault((prefix, size), Shapes(prefix, key.width))
        return Batch(rows=tuple(rows), size=size, shapes=shapes)
