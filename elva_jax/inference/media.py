"""Videos, images and questions as a user gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from elva_jax.data.conversation import MARKER
from elva_jax.errors import LayoutError
from elva_jax.video.clip import Source, Visual
from elva_jax.video.read import Frames

Media = Source | Visual | Sequence[Source | Visual] | None


@dataclasses.dataclass(frozen=True)
class Request:
    """One question of a batch.

    Attributes:
      media: as `ElvaModel.answer` takes it.
      prompt: the question.

    Example:
      >>> import elva_jax
      >>> elva_jax.Request("clip.mp4", "What happens?").prompt
      'What happens?'
    """

    media: Media
    prompt: str


def as_list(media: Media) -> list[Source | Visual]:
    """Each video or image by itself; a list of arrays, or an empty list, is the frames of one."""
    if media is None:
        return []
    if isinstance(media, (str, Path, bytes, Frames, Visual)):
        return [media]
    if isinstance(media, tuple) and not media:
        return []
    is_one = not len(media) or isinstance(media[0], np.ndarray)
    return cast(list[Source | Visual], [media] if is_one else list(media))


def check_question(question: str) -> None:
    """Refuses a question that asks nothing.

    Raises:
      LayoutError: no text but markers.
    """
    if not MARKER.sub("", question).strip():
        raise LayoutError("the prompt is empty; ask something")
