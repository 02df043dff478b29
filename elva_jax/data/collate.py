"""Collates rows of samples into batches, arrays whose shapes never change during a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from elva_jax.data.packing import RowCapacity, Sample
from elva_jax.data.teacher_frames import NO_TEACHER, TeacherFrames
from elva_jax.video.counts import Counts
from elva_jax.video.layout import TokenLayout, pack


class Collator(Protocol):
    """Joins rows of samples into a batch."""

    @property
    def row_bytes(self) -> int:
        """Size of a row's pixels in bytes, which limits the number of prefetched samples."""

    def __call__(self, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The arrays of a batch."""

    def stats(self, rows: Sequence[Sequence[Any]]) -> dict[str, float]:
        """Statistics of a batch for the training log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedCollator:
    """Batches of packed `Sample`s for a video LLM.

    A batch is a dict of patches uint8 [b, N, P*P*3] and layout TokenLayout [b, S]; with teachers
    also teacher_frames {Ht: uint8 [b, F, Ht, Ht, 3]}, indexed by `layout.frame`; and with a teacher
    that sees clips teacher_media int32 [b, F], the number of each frame's video or image in its
    row, -1 where there is no frame.
    """

    capacity: RowCapacity
    patch_width: int  # P*P*3
    teacher: TeacherFrames = NO_TEACHER

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's patches and teacher frames."""
        patches = self.capacity.patches * self.patch_width
        return patches + self.capacity.frames * self.teacher.frame_bytes

    def __call__(self, rows: Sequence[Sequence[Sample]]) -> dict[str, Any]:
        """The arrays of a batch."""
        most = self.capacity
        patches = np.zeros((len(rows), most.patches, self.patch_width), np.uint8)
        frames = self.teacher.empty(len(rows), most.frames)
        media = np.full((len(rows), most.frames), -1, np.int32)
        for r, row in enumerate(rows):
            patch = frame = 0
            for sample in row:
                next_patch, next_frame = patch + sample.counts.patches, frame + sample.counts.frames
                patches[r, patch:next_patch] = sample.patches
                for size, array in frames.items():
                    array[r, frame:next_frame] = sample.teacher_frames[size]
                if self.teacher.media:
                    media[r, frame:next_frame] = sample.media + media[r].max() + 1
                patch, frame = next_patch, next_frame
        layouts = [pack([sample.layout for sample in row], most.tokens) for row in rows]
        batch: dict[str, Any] = {"patches": patches, "layout": TokenLayout.stack(layouts)}
        if frames:
            batch["teacher_frames"] = frames
        return {**batch, "teacher_media": media} if self.teacher.media else batch

    def stats(self, rows: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """Number of examples, and the fractions of the rows' tokens and patches that are used."""
        counts = [sample.counts for row in rows for sample in row]
        return {
            "examples": float(len(counts)),
            "token_fill": sum(c.tokens for c in counts) / (len(rows) * self.capacity.tokens),
            "patch_fill": sum(c.patches for c in counts) / (len(rows) * self.capacity.patches),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSample:
    """One clip and one caption."""

    pixels: np.ndarray  # uint8 [f, Ht, Ht, 3]
    token_ids: np.ndarray  # int32 [length]

    @property
    def counts(self) -> Counts:
        """Numbers of tokens and frames."""
        tokens = len(self.token_ids)
        return Counts(tokens=tokens, patches=0, frames=len(self.pixels), merged_tokens=tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionCollator:
    """Batches of `CaptionSample`s for a vision tower, one per row.

    A batch is a dict of pixels uint8 [b, F, Ht, Ht, 3], frame_mask bool [b, F], token_ids
    int32 [b, L] and mask bool [b, L].
    """

    num_frames: int  # F
    image_size: int  # Ht
    text_length: int  # L
    padding_id: int  # vocabulary id that fills a row after the end of its caption

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's frames."""
        return self.num_frames * self.image_size**2 * 3

    def __call__(self, rows: Sequence[Sequence[CaptionSample]]) -> dict[str, Any]:
        """The arrays of a batch."""
        b, f, side, length = len(rows), self.num_frames, self.image_size, self.text_length
        pixels, frame_mask = np.zeros((b, f, side, side, 3), np.uint8), np.zeros((b, f), bool)
        token_ids = np.full((b, length), self.padding_id, np.int32)
        mask = np.zeros((b, length), bool)
        for r, (sample,) in enumerate(rows):
            frames, tokens = len(sample.pixels), len(sample.token_ids)
            pixels[r, :frames], frame_mask[r, :frames] = sample.pixels, True
            token_ids[r, :tokens], mask[r, :tokens] = sample.token_ids, True
        return {"pixels": pixels, "frame_mask": frame_mask, "token_ids": token_ids, "mask": mask}

    def stats(self, rows: Sequence[Sequence[CaptionSample]]) -> dict[str, float]:
        """Number of examples."""
        return {"examples": float(len(rows))}
