"""The pixels that teachers see: square frames, and which of them belong to one video or image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from elva_jax.config.schema import TeacherConfig

Frames = dict[int, np.ndarray]  # by side: uint8 [..., side, side, 3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherFrames:
    """The frames that a batch holds for its teachers.

    A teacher sees frames that were resized from the video to its own side, as it was trained, and
    not those of a larger teacher resized once more. Teachers of the same side share an array.

    Attributes:
      sizes: sides of the square frames, each once, increasing; (): no teacher.
      media: whether the batch says which frames belong to one video, as teachers of clips need.
    """

    sizes: tuple[int, ...] = ()
    media: bool = False

    @classmethod
    def of(cls, teachers: Iterable[TeacherConfig]) -> TeacherFrames:
        """The frames that some teachers need."""
        every = list(teachers)
        return cls(
            sizes=tuple(sorted({teacher.image_size for teacher in every})),
            media=any(teacher.num_frames > 1 for teacher in every),
        )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame at all sizes."""
        return sum(size**2 * 3 for size in self.sizes)

    @property
    def setting(self) -> int | list[int] | None:
        """The sizes as saved positions in the data have them."""
        return self.sizes[0] if len(self.sizes) == 1 else list(self.sizes) or None

    def empty(self, *dims: int) -> Frames:
        """Black frames [*dims, side, side, 3] of each size."""
        return {size: np.zeros((*dims, size, size, 3), np.uint8) for size in self.sizes}


NO_TEACHER = TeacherFrames()


def join(parts: Sequence[Frames], teacher: TeacherFrames, count: int) -> Frames:
    """The first `count` frames of several videos and images, of each size."""
    if len(parts) == 1:
        return {size: frames[:count] for size, frames in parts[0].items()}
    return {
        size: np.concatenate([none, *(part[size] for part in parts)])[:count]
        for size, none in teacher.empty(0).items()
    }
