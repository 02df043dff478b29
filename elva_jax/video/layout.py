"""TokenLayout: the kind, position and grid cell of every token, fixed on the host in NumPy.

A frame of h x w patches is `<FRAME>`, then h rows of w patches closed by `<LINE>`: h*w + h + 1
tokens (paper, section 3.1). The first frame of a video, of 2 x 3 patches:

    +---+---+---+
    | 0 | 1 | 2 |      kind         FRAME PATCH PATCH PATCH LINE  PATCH PATCH PATCH LINE
    +---+---+---+      patch_index    -1    0     1     2    -1     3     4     5    -1
    | 3 | 4 | 5 |      frame           0    0     0     0     0     0     0     0     0
    +---+---+---+      row            -1    0     0     0     0     1     1     1     1
                       tube           -1    0     1     2     6     3     4     5     7
                       cell (row)     -1    0     0     0    -1     1     1     1    -1
                       cell (column)  -1    0     1     2    -1     0     1     2    -1
                       position        0    1     2     3     4     5     6     7     8

The next frame of that grid has the same tubes, frame 1, rows 2 and 3, and patches 6 to 11. A bare
frame, as in an encoder-based model, consists of its h*w patches only. These arrays describe all
that varies between videos: the model only gathers, scatters and reduces with them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from elva_jax.errors import LayoutError

Array = Any  # NumPy arrays on the host, JAX arrays on the device; this module must not import JAX


class Kind(enum.IntEnum):
    """The kind of a token."""

    PAD = 0
    TEXT = 1
    FRAME = 2
    PATCH = 3
    LINE = 4


NUMBERED = ("patch_index", "frame", "row", "tube")  # fields that are unique in a packed sequence


class TokenLayout(NamedTuple):
    """Arrays of one length S, usable as a JAX pytree; a leading batch axis is allowed.

    Values of `patch_index`, `frame`, `row` and `tube` are unique within one packed sequence. They
    and `cell` are -1 for tokens to which they do not apply.

    Attributes:
      kind: a `Kind`.
      token_id: vocabulary id of text; 0 elsewhere.
      patch_index: index into the patch array [N, P*P*3] of a PATCH.
      frame: frame of a FRAME, PATCH or LINE.
      row: row of a PATCH or LINE, counted over all frames.
      tube: chain of mergeable tokens: the PATCH or LINE tokens at one grid position in the frames
        of a video that have the same grid.
      cell: grid row, grid column, grid rows and grid columns of a PATCH.
      position: RoPE position: number of tokens of the example before the token, without those of
        other independent turns. The survivor of a merge keeps its position.
      turn: number of the token's independent turn, from 1; 0: shared by all turns.
      segment: number of the packed example, from 1; 0: padding.
      target: vocabulary id of the next token where it is learned; 0 elsewhere.
      loss_weight: loss weight of that prediction; 0 where nothing is learned.

    Example:
      >>> from elva_jax import testing
      >>> testing.tiny_layout(frames=2, rows=1, columns=2).tube.tolist()
      [-1, 0, 1, 2, -1, 0, 1, 2, -1, -1, -1, -1]
    """

    kind: Int32[Array, "*B S"]
    token_id: Int32[Array, "*B S"]
    patch_index: Int32[Array, "*B S"]
    frame: Int32[Array, "*B S"]
    row: Int32[Array, "*B S"]
    tube: Int32[Array, "*B S"]
    cell: Int32[Array, "*B S 4"]
    position: Int32[Array, "*B S"]
    turn: Int32[Array, "*B S"]
    segment: Int32[Array, "*B S"]
    target: Int32[Array, "*B S"]
    loss_weight: Float32[Array, "*B S"]

    @property
    def length(self) -> int:
        """The length S, including padding."""
        return self.kind.shape[-1]

    @staticmethod
    def shapes(*dims: int) -> TokenLayout:
        """The shapes of all fields of a layout [*dims], such as [B, S]."""
        return TokenLayout(**dict.fromkeys(TokenLayout._fields, dims) | {"cell": (*dims, 4)})

    @staticmethod
    def dtypes() -> TokenLayout:
        """The dtypes of all fields."""
        integers = dict.fromkeys(TokenLayout._fields, np.dtype(np.int32))
        return TokenLayout(**integers | {"loss_weight": np.dtype(np.float32)})

    @staticmethod
    def pad_values() -> TokenLayout:
        """The values of all fields at padding."""
        zeros = dict.fromkeys(TokenLayout._fields, 0)
        return TokenLayout(**zeros | dict.fromkeys((*NUMBERED, "cell"), -1))

    @staticmethod
    def padding(*dims: int) -> TokenLayout:
        """A layout [*dims] that is all padding."""
        each = TokenLayout.shapes(*dims), TokenLayout.pad_values(), TokenLayout.dtypes()
        return TokenLayout(*map(np.full, *each))

    @staticmethod
    def stack(layouts: Sequence[TokenLayout]) -> TokenLayout:
        """Stacks layouts of the same length into a batch."""
        return TokenLayout(*(np.stack(field) for field in zip(*layouts, strict=True)))


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A run of text tokens.

    Runs with the same `turn` above 0 form a branch: they attend to turn 0 and to each other but not
    to other turns, as if their turn were the only one after turn 0.

    Attributes:
      token_ids: vocabulary ids.
      weight: loss weight of predicting each of them; 0: context only.
      turn: number of their independent turn; 0: shared by all turns.

    Example:
      >>> import elva_jax
      >>> elva_jax.Text((7, 8), weight=1.0).token_ids
      (7, 8)
    """

    token_ids: Sequence[int] | np.ndarray
    _: dataclasses.KW_ONLY
    weight: float = 0.0
    turn: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """A video or image as the patch grids of its frames.

    Attributes:
      grids: (rows, columns) of each frame, in temporal order.
      bare: whether frames consist of patches only, without <FRAME> and <LINE>.

    Example:
      >>> import elva_jax
      >>> two_frames = elva_jax.Clip(((2, 3), (2, 3)))
      >>> elva_jax.build_layout([two_frames]).length
      18
    """

    grids: Sequence[tuple[int, int]]
    _: dataclasses.KW_ONLY
    bare: bool = False


def frame_tokens(rows: int, columns: int, *, bare: bool = False) -> int:
    """Number of tokens of a frame of rows x columns patches."""
    return rows * columns + (0 if bare else rows + 1)


def clip_tokens(clip: Clip) -> int:
    """Number of tokens of all frames of a clip."""
    return sum(frame_tokens(*grid, bare=clip.bare) for grid in clip.grids)


def part_tokens(part: Text | Clip) -> int:
    """Number of tokens of a text or a clip."""
    return len(part.token_ids) if isinstance(part, Text) else clip_tokens(part)


class _Frame(NamedTuple):
    """The arrays that all frames of a grid have in common; read-only, because they are cached."""

    kind: np.ndarray  # [n] a Kind
    head: int  # number of tokens before the first row: 1 for <FRAME>, else 0
    patch: np.ndarray  # [h*w] index of each patch among the frame's tokens
    row: np.ndarray  # [n - head] row of each token after the head
    tube: np.ndarray  # [n - head] tube of each token after the head, from 0
    cell: np.ndarray  # [n, 4]


@functools.lru_cache(maxsize=1024)
def _frame(rows: int, columns: int, *, bare: bool) -> _Frame:
    if rows < 1 or columns < 1:
        raise LayoutError(
            f"a frame of {rows} x {columns} patches has no tokens; "
            "both sides need at least one patch"
        )
    head, width = (0, columns) if bare else (1, columns + 1)
    in_row = np.arange(rows * width, dtype=np.int32)
    row, column = in_row // width, in_row % width
    is_line = column == columns
    cell = np.stack([row, column, np.full_like(row, rows), np.full_like(row, columns)], axis=-1)
    kind = np.where(is_line, Kind.LINE, Kind.PATCH)
    return _Frame(
        kind=np.append([Kind.FRAME] * head, kind).astype(np.int32),
        head=head,
        patch=head + np.flatnonzero(~is_line),
        row=row,
        tube=np.where(is_line, rows * columns + row, row * columns + column).astype(np.int32),
        cell=np.concatenate(
            [np.full((head, 4), -1, np.int32), np.where(is_line[:, None], -1, cell)]
        ),
    )


def build_layout(parts: Sequence[Text | Clip], *, captions: bool = False) -> TokenLayout:
    """Lays out one example.

    Patches are numbered from 0 in the order of clips, frames and rows. Frames of a clip that have
    the same grid share tubes, even if other frames lie between them; clips never share tubes.

    Args:
      parts: text and clips in order.
      captions: whether an answer may follow a visual token; tokens must then not merge.

    Returns:
      The layout [S] of the example, without padding.

    Raises:
      LayoutError: the example is empty; a grid has no patches; an answer does not follow text of
        its turn (no merge removes text); an earlier turn follows a later one.

    Example:
      >>> from elva_jax import Clip, Text, build_layout
      >>> layout = build_layout([Clip(((1, 2),)), Text((7, 8)), Text((9,), weight=1.0)])
      >>> layout.kind.tolist()  # FRAME, PATCH, PATCH, LINE, TEXT, TEXT, TEXT
      [2, 3, 3, 4, 1, 1, 1]
      >>> layout.target.tolist()
      [0, 0, 0, 0, 0, 9, 0]
    """
    length = sum(
        len(part.token_ids)
        if isinstance(part, Text)
        else sum(len(_frame(*grid, bare=part.bare).kind) for grid in part.grids)
        for part in parts
    )
    if length == 0:
        raise LayoutError("an example needs at least one token")
    out = TokenLayout.padding(length)
    # Weight of predicting each token; the last entry is for the token after the end.
    weight = np.zeros(length + 1, np.float32)
    at = _Counters()
    for part in parts:
        if isinstance(part, Clip):
            at = _write_clip(out, part, at)
            continue
        span = slice(at.token, at.token + len(part.token_ids))
        out.kind[span], out.token_id[span], out.turn[span] = Kind.TEXT, part.token_ids, part.turn
        weight[span] = part.weight
        at = at._replace(token=span.stop)
    steps = np.diff(out.turn, prepend=0)
    if np.any(steps[1:] < 0):
        raise LayoutError("turns must come in order, after what they share")
    starts = np.flatnonzero(steps)
    learned = weight[1:] > 0
    early = learned & (out.kind != Kind.TEXT) & (not captions)
    if weight[0] > 0 or np.any(early) or np.any(weight[starts] > 0):
        raise LayoutError(
            "an answer must follow a text token; "
            "it cannot open the example or a turn, or follow a visual token"
        )
    out.position[:] = _positions(length, starts)
    out.segment[:] = 1
    out.target[:-1] = np.where(learned[:-1], out.token_id[1:], 0)
    out.loss_weight[:] = weight[1:]
    return out


def _positions(length: int, starts: np.ndarray) -> np.ndarray:
    """int32 [S]: RoPE positions; each turn continues those of the shared part."""
    position = np.arange(length, dtype=np.int32)
    for start in starts[1:]:
        position[start:] = starts[0] + np.arange(length - start)
    return position


class _Counters(NamedTuple):
    """The next free numbers of an example's tokens, patches, frames, rows and tubes."""

    token: int = 0
    patch: int = 0
    frame: int = 0
    row: int = 0
    tube: int = 0


def _write_clip(out: TokenLayout, clip: Clip, at: _Counters) -> _Counters:
    """Writes the tokens of a clip, one run of equal grids at a time; returns the next numbers."""
    first_tube: dict[tuple[int, int], int] = {}
    for (h, w), group in itertools.groupby(clip.grids):
        shared, n = _frame(h, w, bare=clip.bare), len(list(group))
        stop = at.token + n * len(shared.kind)
        # Views [n, tokens of a frame].
        frames = TokenLayout(
            *(field[at.token : stop].reshape(n, -1, *field.shape[1:]) for field in out)
        )
        if (h, w) not in first_tube:
            first_tube[h, w] = at.tube
            at = at._replace(tube=at.tube + h * w + h)
        nth = np.arange(n, dtype=np.int32)[:, None]
        patches = np.arange(n * h * w, dtype=np.int32).reshape(n, h * w)
        frames.kind[:] = shared.kind
        frames.patch_index[:, shared.patch] = at.patch + patches
        frames.frame[:] = at.frame + nth
        frames.row[:, shared.head :] = at.row + nth * h + shared.row
        frames.tube[:, shared.head :] = first_tube[h, w] + shared.tube
        frames.cell[:] = shared.cell
        at = at._replace(
            token=stop, patch=at.patch + n * h * w, frame=at.frame + n, row=at.row + n * h
        )
    return at


def pack(layouts: Sequence[TokenLayout], length: int) -> TokenLayout:
    """Joins examples into one sequence of `length` tokens, padded with PAD.

    Example k (from 0) becomes segment k + 1. Its patch, frame, row and tube numbers are shifted so
    that they stay unique. The patch arrays must be concatenated in the same order.

    Raises:
      LayoutError: the examples do not fit.
    """
    total = sum(layout.length for layout in layouts)
    if total > length:
        raise LayoutError(f"{total} tokens do not fit a sequence of {length}")
    out = TokenLayout.padding(length)
    start, first = 0, dict.fromkeys(NUMBERED, 0)
    for segment, layout in enumerate(layouts, start=1):
        span = slice(start, start + layout.length)
        for name, field, values in zip(out._fields, out, layout, strict=True):
            if name in first:
                field[span] = np.where(values >= 0, values + first[name], -1)
                first[name] += int(values.max(initial=-1)) + 1
            else:
                field[span] = values
        out.segment[span] = segment
        start = span.stop
    return out
