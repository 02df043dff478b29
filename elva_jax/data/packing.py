"""Packing of examples into the rows of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from elva_jax.video.layout import Counts, TokenLayout, pack

AHEAD = 8  # rows' worth of decoded examples that wait to be packed: what fills rows about as well as knowing all examples at once


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One example, ready to be packed (no tuple: Grain would send each of its arrays through a shared-memory file of its own)."""

    layout: TokenLayout
    patches: np.ndarray  # uint8 [n, P*P*3]
    teacher_frames: np.ndarray | None  # uint8 [f, Ht, Ht, 3]
    counts: Counts


def budgets(config: ConfigDict, stage_name: str) -> Counts:
    """What one row holds; the floor is the smallest merge bucket."""
    stage = config.stages[stage_name]
    buckets = [bucket for bucket in stage.merge_buckets if bucket] if stage.merging else []
    data = stage.data
    return Counts(
        data.seq_len, data.max_patches, data.max_frames, min(buckets, default=data.seq_len)
    )


def merges_before_bucket(config: ConfigDict, stage_name: str) -> tuple[tuple[str, float], ...]:
    """Policy and ratio of a stage's merging layers up to its smallest bucket, for `video.layout.count`; () where there is none."""
    stage, model = config.stages[stage_name], config.model
    sizes = [bucket or stage.data.seq_len for bucket in stage.merge_buckets]
    if not stage.merging or not any(stage.merge_buckets):
        return ()
    last = sizes.index(min(sizes)) + 1
    return tuple(zip(model.merge_policies[:last], model.merge_ratios[:last], strict=True))


def over(counts: Counts, capacity: Counts) -> list[str]:
    """Names of the budgets that `counts` exceeds."""
    return [
        name for name, n, most in zip(Counts._fields, counts, capacity, strict=True) if n > most
    ]


class Window:
    """Examples that wait to be packed, among which every row looks for what fills it.

    A row begins with the example that has waited longest, so that none waits for more rows than there were examples before it, and then
    takes the largest one that still fits, again and again: the small ones are left to close the gaps. Which row gets what depends on the
    order of the examples alone, not on how many rows make a batch.

    Args:
      capacity: what a row holds.
      ahead: how many rows' worth of tokens wait before a row is taken; 0: one example, so that a row has one example.
    """

    def __init__(self, capacity: Counts, ahead: float = AHEAD):
        self._capacity = np.asarray(capacity, np.int64)
        self._enough = max(ahead * capacity.tokens, 1)
        self._waiting: list[tuple[Any, Counts]] = []

    @property
    def waiting(self) -> list[tuple[Any, Counts]]:
        """What waits, the oldest first, with its counts."""
        return list(self._waiting)

    @property
    def short(self) -> bool:
        """Whether more is to be added before the next row is taken."""
        return sum(counts.tokens for _, counts in self._waiting) < self._enough

    def add(self, example: Any, counts: Counts) -> None:
        """Adds an example that fits a row."""
        self._waiting.append((example, counts))

    def take(self) -> list[Any]:
        """The next row; something must wait."""
        counts = np.asarray([counts for _, counts in self._waiting], np.int64)
        room, free, row = self._capacity.copy(), np.ones(len(counts), bool), [0]
        while True:
            room -= counts[row[-1]]
            free[row[-1]] = False
            fits = free & np.all(counts <= room, axis=1)
            if not fits.any():
                break
            row.append(int(np.argmax(np.where(fits, counts[:, 0], -1))))
        taken = [self._waiting[k][0] for k in row]
        self._waiting = [entry for entry, left in zip(self._waiting, free, strict=True) if left]
        return taken


class Packed(NamedTuple):
    """How a stream of examples was packed."""

    rows: int
    examples: int
    token_fill: float  # share of the rows' tokens that is no padding
    patch_fill: float  # the same of their patches
    most_waiting: int  # most examples that waited at a time
    longest_wait: int  # most rows that an example waited for


def simulate(counts: Iterable[Counts], capacity: Counts, ahead: float = AHEAD) -> Packed:
    """Packs examples by their counts alone, as training does, as long as there are enough to choose from."""
    window, stream = Window(capacity, ahead), iter(counts)
    rows, most, longest, taken = 0, 0, 0, []
    while True:
        while window.short:
            new = next(stream, None)
            if new is None:
                totals = np.sum(taken, axis=0) if taken else np.zeros(len(capacity))
                fill = totals / (max(rows, 1) * np.asarray(capacity))
                return Packed(rows, len(taken), float(fill[0]), float(fill[1]), most, longest)
            window.add((rows, new), new)
        most = max(most, len(window.waiting))
        row = window.take()
        longest = max(longest, *(rows - since for since, _ in row))
        taken += [counts for _, counts in row]
        rows += 1


def collate(
    rows: Sequence[Sequence[Sample]], capacity: Counts, patch_width: int, teacher_size: int | None
) -> dict:
    """Joins packed rows into arrays of fixed shape.

    Returns:
      patches uint8 [b, N, patch_width], layout TokenLayout [b, S], and teacher_frames uint8 [b, F, Ht, Ht, 3] if there is a teacher.
    """
    layouts = [pack([sample.layout for sample in row], capacity.tokens) for row in rows]
    batch = {
        "patches": np.zeros((len(rows), capacity.patches, patch_width), np.uint8),
        "layout": TokenLayout(*(np.stack(field) for field in zip(*layouts, strict=True))),
    }
    if teacher_size:
        batch["teacher_frames"] = np.zeros(
            (len(rows), capacity.frames, teacher_size, teacher_size, 3), np.uint8
        )
    for r, row in enumerate(rows):
        patch = frame = 0
        for sample in row:
            batch["patches"][r, patch : patch + sample.counts.patches] = sample.patches
            if teacher_size:
                batch["teacher_frames"][r, frame : frame + sample.counts.frames] = (
                    sample.teacher_frames
                )
            patch, frame = patch + sample.counts.patches, frame + sample.counts.frames
    return batch
