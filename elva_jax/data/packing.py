"""Packing of examples into the rows of a batch.

An example uses tokens, patches and frames of a row. A row of 10 tokens takes the oldest waiting
example, A, then the largest one that still fits, B, then D; the next row begins with C:

    waiting   A (5)   B (3)   C (9)   D (2)        row   [A A A A A B B B D D]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from elva_jax.config.schema import ModelConfig, StageConfig
from elva_jax.config.stage_schema import DataConfig
from elva_jax.data.teacher_frames import Frames
from elva_jax.video.counts import Counts
from elva_jax.video.layout import TokenLayout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One decoded example.

    It is not a tuple, because Grain would send each array through its own shared-memory file.
    """

    layout: TokenLayout
    patches: np.ndarray  # uint8 [n, P*P*3]
    teacher_frames: Frames  # uint8 [f, Ht, Ht, 3] by Ht; empty without a teacher
    media: np.ndarray  # int32 [f], number of the video or image of each teacher frame
    counts: Counts


class RowCapacity(Counts):
    """The limits of one row: the sums of `Counts` over its examples may not exceed them."""

    @classmethod
    def of_stage(cls, stage: StageConfig) -> RowCapacity:
        """The capacity of a stage's rows; the smallest merge bucket limits `merged_tokens`."""
        data = stage.data
        buckets = [bucket for bucket in stage.merge_buckets if bucket] if stage.merging else []
        smallest = min(buckets, default=data.seq_len)
        return cls(data.seq_len, data.max_patches, data.max_frames, smallest)

    def exceeded_by(self, counts: Counts) -> list[str]:
        """Names of the fields in which `counts` exceeds the capacity."""
        return [name for name, n, most in zip(self._fields, counts, self, strict=True) if n > most]


def merges_before_bucket(stage: StageConfig, model: ModelConfig) -> tuple[tuple[str, float], ...]:
    """Policy and ratio of the merging layers up to the smallest bucket, for `video.counts.count`.

    The result is empty if the stage has no buckets.
    """
    if not stage.merging or not any(stage.merge_buckets):
        return ()
    sizes = [bucket or stage.data.seq_len for bucket in stage.merge_buckets]
    last = sizes.index(min(sizes)) + 1
    return tuple(zip(model.merge_policies[:last], model.merge_ratios[:last], strict=True))


class Packer(Protocol):
    """Holds waiting examples, and chooses those of each row."""

    @property
    def waiting(self) -> list[tuple[Any, Counts]]:
        """The waiting examples with their counts, oldest first."""

    @property
    def short(self) -> bool:
        """Whether more examples must be added before the next row is taken."""

    def add(self, example: Any, counts: Counts) -> None:
        """Adds an example that fits a row."""

    def take(self) -> list[Any]:
        """Removes and returns the examples of the next row."""

    def clear(self) -> None:
        """Forgets all waiting examples."""


class SingleRows:
    """The packer of unpacked batches: one example per row."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Counts]] = []

    @property
    def short(self) -> bool:
        """Whether no example is waiting."""
        return not self.waiting

    def add(self, example: Any, counts: Counts) -> None:
        """Adds an example."""
        self.waiting.append((example, counts))

    def take(self) -> list[Any]:
        """Removes and returns the oldest example."""
        return [self.waiting.pop(0)[0]]

    def clear(self) -> None:
        """Forgets all waiting examples."""
        self.waiting.clear()


class PackingBuffer:
    """The packer that fills rows from a buffer of waiting examples.

    A row takes the oldest waiting example, then repeatedly the largest one that still fits, so that
    small examples fill the gaps. An example waits for at most as many rows as there were examples
    ahead of it. The rows depend on the order of the examples only, not on the batch size.

    Args:
      capacity: limits of a row.
      lookahead: number of tokens that must wait before a row is taken, in rows.
    """

    def __init__(self, capacity: Counts, lookahead: float):
        self._capacity = np.asarray(capacity, np.int64)
        self._enough = max(lookahead * capacity.tokens, 1)
        self._waiting: list[tuple[Any, Counts]] = []

    @property
    def waiting(self) -> list[tuple[Any, Counts]]:
        """The waiting examples with their counts, oldest first."""
        return list(self._waiting)

    @property
    def short(self) -> bool:
        """Whether more examples must be added before the next row is taken."""
        return sum(counts.tokens for _, counts in self._waiting) < self._enough

    def add(self, example: Any, counts: Counts) -> None:
        """Adds an example that fits a row."""
        self._waiting.append((example, counts))

    def take(self) -> list[Any]:
        """Removes and returns the examples of the next row; at least one must wait."""
        counts = np.asarray([counts for _, counts in self._waiting], np.int64)
        left, free, row = self._capacity.copy(), np.ones(len(counts), bool), [0]
        while True:
            left -= counts[row[-1]]
            free[row[-1]] = False
            fits = free & np.all(counts <= left, axis=1)
            if not fits.any():
                break
            row.append(int(np.argmax(np.where(fits, counts[:, 0], -1))))
        taken = [self._waiting[k][0] for k in row]
        self._waiting = [entry for entry, waits in zip(self._waiting, free, strict=True) if waits]
        return taken

    def clear(self) -> None:
        """Forgets all waiting examples."""
        self._waiting = []


def make_packer(data: DataConfig, capacity: Counts) -> Packer:
    """The packer of a stage's data settings."""
    return PackingBuffer(capacity, data.pack_lookahead) if data.pack else SingleRows()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingReport:
    """Statistics of a simulated packing."""

    rows: int
    examples: int
    token_fill: float  # fraction of the rows' tokens that are not padding
    patch_fill: float  # fraction of the rows' patches that are used
    most_waiting: int  # largest number of waiting examples
    longest_wait: int  # largest number of rows that an example waited for


def simulate(counts: Iterable[Counts], capacity: Counts, lookahead: float) -> PackingReport:
    """Packs examples as in training, given only their counts, until too few remain."""
    buffer, stream = PackingBuffer(capacity, lookahead), iter(counts)
    rows = most = longest = 0
    taken: list[Counts] = []
    while True:
        while buffer.short:
            new = next(stream, None)
            if new is None:
                totals = np.sum(taken, axis=0) if taken else np.zeros(len(capacity))
                fill = totals / (max(rows, 1) * np.asarray(capacity))
                return PackingReport(
                    rows=rows,
                    examples=len(taken),
                    token_fill=float(fill[0]),
                    patch_fill=float(fill[1]),
                    most_waiting=most,
                    longest_wait=longest,
                )
            buffer.add((rows, new), new)
        most = max(most, len(buffer.waiting))
        row = buffer.take()
        longest = max(longest, *(rows - since for since, _ in row))
        taken += [counts for _, counts in row]
        rows += 1
