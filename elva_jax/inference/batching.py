"""Batches of prompts on the host: token layouts, padded to a bounded grid of lengths.

Every program that inference compiles has shapes from `grid_length` and `grid_batch`, so their
number is bounded by the logarithm of the longest input, whatever the videos and questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from elva_jax.errors import LayoutError
from elva_jax.video import layout as layouts
from elva_jax.video.layout import Clip, Text, TokenLayout

HEADROOM = 8  # a steady length has one part in eight to spare


def grid_length(tokens: int, smallest: int = 16) -> int:
    """The smallest length of the grid that holds `tokens`.

    The grid has four steps per octave (…, 64, 80, 96, 112, 128 …), so at most a quarter is padding.
    """
    tokens = max(tokens, smallest)
    step = max(smallest // 4, 1 << max((tokens - 1).bit_length() - 3, 0))
    return -(-tokens // step) * step


def grid_batch(rows: int) -> int:
    """The smallest power of two that holds `rows`."""
    return 1 << max(rows - 1, 0).bit_length()


class Lengths:
    """Chooses padded lengths from the grid.

    Args:
      steady: never less than before under the same name, and with some headroom, so that a stream
        of batches soon settles on one set of programs.
    """

    def __init__(self, *, steady: bool = False) -> None:
        self._steady = steady
        self._largest: dict[str, int] = {}

    def __call__(self, name: str, tokens: int, smallest: int = 16) -> int:
        """The padded length for `tokens`; `name` says which length it is."""
        if not self._steady:
            return grid_length(tokens, smallest)
        if tokens > self._largest.get(name, 0):
            self._largest[name] = grid_length(tokens + tokens // HEADROOM, smallest)
        return self._largest[name]


ChooseLength = Callable[..., int]  # (name, tokens, smallest=16) -> a length that holds them
GRID = Lengths()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt cut after its last visual token: questions about the same videos share a prefix."""

    prefix: tuple[Text | Clip, ...]  # chat header and clips; without clips, the first token
    question: tuple[int, ...]  # token ids of the rest, up to where the answer begins

    @property
    def prefix_tokens(self) -> int:
        """Length of the prefix, before any merging."""
        return sum(map(layouts.part_tokens, self.prefix))

    @property
    def tokens(self) -> int:
        """Length up to where the answer begins, before any merging."""
        return self.prefix_tokens + len(self.question)


def text_tokens(parts: Iterable[Text | Clip]) -> list[int]:
    """The vocabulary ids of a prompt's text, without what stands for its clips."""
    return [int(token) for part in parts if isinstance(part, Text) for token in part.token_ids]


def split_prompt(parts: Sequence[Text | Clip]) -> Prompt:
    """Splits a rendered prompt after its last clip (without clips, after its first token).

    Raises:
      LayoutError: the prompt is empty, or ends with a clip.
    """
    clips = [i for i, part in enumerate(parts) if isinstance(part, Clip)]
    if clips:
        prefix, question = list(parts[: clips[-1] + 1]), text_tokens(parts[clips[-1] + 1 :])
    else:
        tokens = text_tokens(parts)
        prefix, question = [Text(tuple(tokens[:1]))], tokens[1:]
    if not question:
        raise LayoutError("the prompt ends with a video; add a question after it")
    return Prompt(prefix=tuple(prefix), question=tuple(question))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch of token sequences, padded on the right."""

    patches: np.ndarray  # [B, N, P*P*3] uint8
    layout: TokenLayout  # [B, S]
    length: np.ndarray  # [B] tokens of each row, which is the position where its text continues
    stretch: np.ndarray  # int32 [B], how RoPE is scaled for each row


def build_rows(
    parts: Sequence[Sequence[Text | Clip]],
    patches: Sequence[np.ndarray],
    patch_width: int,
    lengths: ChooseLength = GRID,
    frame_patches: int = 1,
    stretch: Sequence[int] = (),
) -> Rows:
    """Lays out and pads a batch, which is filled up with copies of its last row.

    Args:
      parts: [b] texts and clips of each row.
      patches: [b] the row's patches in the order of its clips and frames, uint8 [n, P*P*3].
      patch_width: P*P*3.
      lengths: chooses S.
      frame_patches: the model's `frame_patches`. Above 1, N is a whole number of such frames,
        because a vision tower pays for every one of them.
      stretch: [b] how RoPE is scaled (`inference.long_context`); empty: nowhere.

    Returns:
      Rows of B = grid_batch(b), S that holds the longest row, and N = S, so that shapes do not
      multiply.

    Raises:
      LayoutError: patches that do not fit the clips.
    """
    built = [layouts.build_layout(row) for row in parts]
    for layout, values in zip(built, patches, strict=True):
        expected = int(layout.patch_index.max(initial=-1)) + 1
        if values.shape != (expected, patch_width):
            raise LayoutError(
                f"the layout asks for patches of shape ({expected}, {patch_width}),"
                f" the frames give {values.shape}"
            )
    batch = grid_batch(len(built))
    count = length = lengths("prefix", max(layout.length for layout in built))
    if frame_patches > 1:
        frames = -(-max(map(len, patches)) // frame_patches)
        count = frame_patches * grid_length(frames, 1)
    out = np.zeros((batch, count, patch_width), np.uint8)
    for row, values in zip(out, patches, strict=False):
        row[: len(values)] = values
    out[len(built) :] = out[len(built) - 1]
    padded = [layouts.pack([layout], length) for layout in built]
    padded += padded[-1:] * (batch - len(padded))
    stacked = TokenLayout.stack(padded)
    tokens = [int((row.segment > 0).sum()) for row in padded]
    stretches = np.zeros(batch, np.int32)
    if stretch:
        stretches[: len(stretch)], stretches[len(stretch) :] = stretch, stretch[-1]
    return Rows(patches=out, layout=stacked, length=np.asarray(tokens, np.int32), stretch=stretches)
