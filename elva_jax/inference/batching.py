"""Rows of a batch on the host: prompts to token layouts, padded to a bounded grid of lengths.

Every program that inference compiles belongs to shapes from `grid_length` and `grid_batch`, so their number is bounded by the logarithm of
the longest input, whatever the videos and questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from elva_jax.errors import LayoutError
from elva_jax.video import layout as layouts
from elva_jax.video.layout import Clip, Text, TokenLayout

HEADROOM = 8  # a steady length leaves room for an eighth more


def grid_length(tokens: int, smallest: int = 16) -> int:
    """The smallest length of the grid that holds `tokens`: four steps an octave (…, 64, 80, 96, 112, 128 …), at most a quarter more."""
    tokens = max(tokens, smallest)
    step = max(smallest // 4, 1 << max((tokens - 1).bit_length() - 3, 0))
    return -(-tokens // step) * step


def grid_batch(rows: int) -> int:
    """The smallest power of two that holds `rows`."""
    return 1 << max(rows - 1, 0).bit_length()


class Lengths:
    """Chooses padded lengths from the grid.

    Args:
      steady: never less than before under the same name, and with some headroom, so that a stream of batches soon settles on one set of
        programs.
    """

    def __init__(self, steady: bool = False):
        self._steady = steady
        self._seen: dict[str, int] = {}

    def __call__(self, name: str, tokens: int, smallest: int = 16) -> int:
        """The length for `tokens`, and under `name` if steady."""
        if not self._steady:
            return grid_length(tokens, smallest)
        if tokens > self._seen.get(name, 0):
            self._seen[name] = grid_length(tokens + tokens // HEADROOM, smallest)
        return self._seen[name]


class Prompt(NamedTuple):
    """A prompt cut behind its last visual token: questions about the same videos share the front."""

    front: tuple[Text | Clip, ...]  # chat header and clips; without clips, the first token
    question: tuple[int, ...]  # token ids of what follows, up to where the answer begins


def text_tokens(parts: Iterable[Text | Clip]) -> list[int]:
    """The vocabulary ids of a prompt's text, without what stands for its clips."""
    return [int(token) for part in parts if isinstance(part, Text) for token in part.token_ids]


def split_prompt(parts: Sequence[Text | Clip]) -> Prompt:
    """Cuts a rendered prompt behind its last clip (without clips, behind its first token).

    Raises:
      LayoutError: the prompt is empty, or ends with a clip.
    """
    clips = [i for i, part in enumerate(parts) if isinstance(part, Clip)]
    if clips:
        front, rest = list(parts[: clips[-1] + 1]), parts[clips[-1] + 1 :]
        tail = text_tokens(rest)
    else:
        tail = text_tokens(parts)
        front, tail = [Text(tuple(tail[:1]))], tail[1:]
    if not tail:
        raise LayoutError("the prompt has no text behind its video; ask something")
    return Prompt(tuple(front), tuple(tail))


class Rows(NamedTuple):
    """A batch of prompt fronts, right-padded."""

    patches: np.ndarray  # [B, N, P*P*3] uint8
    layout: TokenLayout  # [B, S]
    length: np.ndarray  # [B] tokens of each row, which is the position where its text goes on


def build_rows(
    fronts: Sequence[Sequence[Text | Clip]],
    patches: Sequence[np.ndarray],
    patch_width: int,
    lengths: Lengths | None = None,
    frame_patches: int = 1,
) -> Rows:
    """Lays out and pads prompt fronts; the batch is filled up with copies of its last row.

    Args:
      fronts: [b] chat header and clips of each row.
      patches: [b] the row's patches in the order of its clips and frames, uint8 [n, P*P*3].
      patch_width: P*P*3.
      lengths: chooses S; None: the grid's length.
      frame_patches: `ElvaConfig.frame_patches`: above 1, N is a whole number of such frames, because a tower pays for every one of them.

    Returns:
      Rows of B = grid_batch(b), S = grid_length(longest) and N = S, so that shapes do not multiply.
    """
    built = [layouts.build_layout(front) for front in fronts]
    for layout, rows in zip(built, patches, strict=True):
        expected = int(layout.patch_index.max(initial=-1)) + 1
        if rows.shape != (expected, patch_width):
            raise LayoutError(
                f"the layout asks for patches of shape ({expected}, {patch_width}), the frames give {rows.shape}"
            )
    batch = grid_batch(len(built))
    length = (lengths or Lengths())("front", max(layout.length for layout in built))
    count = (
        length
        if frame_patches == 1
        else frame_patches * grid_length(-(-max(map(len, patches)) // frame_patches), 1)
    )
    out = np.zeros((batch, count, patch_width), np.uint8)
    for row, values in zip(out, patches, strict=False):
        row[: len(values)] = values
    out[len(built) :] = out[len(built) - 1]
    padded = [layouts.pack([layout], length) for layout in built]
    padded += padded[-1:] * (batch - len(padded))
    stacked = TokenLayout(*(np.stack(field) for field in zip(*padded, strict=True)))
    return Rows(
        out, stacked, np.asarray([int((row.segment > 0).sum()) for row in padded], np.int32)
    )
