"""Videos, images and questions as a user gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from elva_jax.data import example
from elva_jax.video.clip import Source, Visual
from elva_jax.video.read import Frames

Medium = Source | Visual | example.Media
Media = Medium | Sequence[Medium] | None
Part = str | Mapping[str, Any]  # of a prompt; see `inference.parts`
Prompt = str | Sequence[Part]


@dataclasses.dataclass(frozen=True)
class Request:
    """One question of a batch.

    Attributes:
      media: as `ElvaModel.answer` takes it.
      prompt: the question: text, or parts that say where the media stand.

    Example:
      >>> import elva_jax
      >>> elva_jax.Request("clip.mp4", "What happens?").prompt
      'What happens?'
    """

    media: Media
    prompt: Prompt


def as_list(media: Media) -> list[Medium]:
    """Each video or image by itself; a list of arrays, or an empty list, is the frames of one."""
    if media is None:
        return []
    if isinstance(media, (str, Path, bytes, Frames, Visual, example.Media)):
        return [media]
    if isinstance(media, tuple) and not media:
        return []
    is_one = not len(media) or isinstance(media[0], np.ndarray)
    return cast(list[Medium], [media] if is_one else list(media))
