"""One side of a comparison of two models; `JaxSide` and `TorchSide` are the two kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from elva_jax.video.read import read_frames


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A prompt of S tokens, of which C survive the last merging layer, and its greedy answer."""

    ids: tuple[int, ...]  # text tokens of the prompt
    index: np.ndarray  # [C] the surviving tokens
    logits: np.ndarray  # [C, V] float32
    tokens: tuple[int, ...]  # greedy answer, which no token ends
    length: int  # S
    patches: np.ndarray | None = None  # uint8 [N, P*P*3], as read; None: no media


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A language model that reads bare text."""

    encode: Callable[[str], list[int]]
    logits: Callable[[Sequence[int]], np.ndarray]  # ids [S] -> float32 [S, V]


class Side(Protocol):
    """A model that can be compared; everything runs in float32."""

    kind: Literal["elva", "text", "vision"] | str
    vocab_size: int

    def ask(self, video: Any, prompt: str, new_tokens: int, *, merging: bool) -> Answered:
        """One question about one video (kind elva)."""
        ...

    def text_model(self) -> TextModel:
        """The language model alone (kinds elva and text)."""
        ...

    def features(self, video: Any) -> dict[str, np.ndarray]:
        """Features of a few frames by name (kind vision)."""
        ...


def square_pixels(video: Any, size: int, count: int = 4) -> np.ndarray:
    """float32 [n, size, size, 3] in [-1, 1]: the first frames of a video, resized to a square."""
    if isinstance(video, (str, Path)):
        video = read_frames(video, num_frames=count).pixels
    frames = [
        np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
        for frame in list(video)[:count]
    ]
    return (np.stack(frames) / 127.5 - 1.0).astype(np.float32)
