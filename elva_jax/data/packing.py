"""First-fit packing of examples into the rows of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from elva_jax.video.layout import Counts, TokenLayout, pack


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One example, ready to be packed (no tuple: Grain would send each of its arrays through a shared-memory file of its own)."""

    layout: TokenLayout
    patches: np.ndarray  # uint8 [n, P*P*3]
    teacher_frames: np.ndarray | None  # uint8 [f, Ht, Ht, 3]
    counts: Counts


def budgets(config: ConfigDict, stage_name: str) -> Counts:
    """What one row holds; the floor is the smallest merge bucket, under which no merge can bring a row."""
    stage = config.stages[stage_name]
    buckets = [bucket for bucket in stage.merge_buckets if bucket] if stage.merging else []
    data = stage.data
    return Counts(data.seq_len, data.max_patches, data.max_frames, min(buckets, default=data.seq_len))


def over(counts: Counts, capacity: Counts) -> list[str]:
    """Names of the budgets that `counts` exceeds."""
    return [name for name, n, most in zip(Counts._fields, counts, capacity, strict=True) if n > most]


class Rows:
    """The open rows of one batch.

    Args:
      number: rows of the batch.
      capacity: what each holds.
      single: whether a row takes one example only.
    """

    def __init__(self, number: int, capacity: Counts, single: bool = False):
        self.samples: list[list] = [[] for _ in range(number)]
        self._room = np.tile(np.asarray(capacity, np.int64), (number, 1))
        self._single = single

    def place(self, sample, counts: Counts) -> bool:
        """Puts a sample into the first row with room in every budget; False where there is none."""
        fits = np.all(self._room >= counts, axis=1)
        if not fits.any():
            return False
        row = int(fits.argmax())
        self.samples[row].append(sample)
        self._room[row] -= counts
        if self._single:
            self._room[row] = -1
        return True

    @property
    def full(self) -> bool:
        """Whether no row can take anything more."""
        return bool(np.all(self._room[:, 0] <= 0))


def collate(rows: Sequence[Sequence[Sample]], capacity: Counts, patch_width: int, teacher_size: int | None) -> dict:
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
        batch["teacher_frames"] = np.zeros((len(rows), capacity.frames, teacher_size, teacher_size, 3), np.uint8)
    for r, row in enumerate(rows):
        patch = frame = 0
        for sample in row:
            batch["patches"][r, patch : patch + sample.counts.patches] = sample.patches
            if teacher_size:
                batch["teacher_frames"][r, frame : frame + sample.counts.frames] = sample.teacher_frames
            patch, frame = patch + sample.counts.patches, frame + sample.counts.frames
    return batch
