"""TokenLayout: what every token of a sequence is, settled on the host in NumPy.

A frame of h x w patches is `<FRAME>`, then h rows of w patches closed by `<LINE>`: h*w + h + 1 tokens (paper, section 3.1).
A bare frame, as an encoder-based model reads it, is its h*w patches alone.
Everything ragged about video ends here: the model only gathers, scatters and reduces by these arrays.
"""

from __future__ import annotations

import enum
import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from elva_jax.errors import LayoutError


class Kind(enum.IntEnum):
    """What a token is."""

    PAD = 0
    TEXT = 1
    FRAME = 2
    PATCH = 3
    LINE = 4


class TokenLayout(NamedTuple):
    """Integer arrays of one length S (a leading batch axis is allowed), usable as a JAX pytree.

    Identifiers (`patch_index`, `frame`, `row`, `tube`) are unique within one packed sequence and −1 where they have no meaning.
    """

    kind: np.ndarray  # [S] a Kind
    token_id: np.ndarray  # [S] vocabulary id of text, 0 elsewhere
    patch_index: np.ndarray  # [S] row of the patch array [N, P*P*3]; -1 for what is not a patch
    frame: np.ndarray  # [S] frame of a FRAME, PATCH or LINE token
    row: np.ndarray  # [S] row of a PATCH or LINE token, counted over all frames
    tube: np.ndarray  # [S] same grid position of frames of one grid in one video, for PATCH and LINE; -1 never merges
    cell: (
        np.ndarray
    )  # [S, 4] grid row, grid column, grid rows, grid columns of a PATCH; -1 elsewhere
    position: np.ndarray  # [S] RoPE position: how many tokens of its example precede it, without other turns; survivors of a merge keep theirs
    turn: np.ndarray  # [S] which of several independent questions a token belongs to, from 1; 0 is what all of them see
    segment: np.ndarray  # [S] which packed example, from 1; 0 is padding
    target: np.ndarray  # [S] vocabulary id of the next token where it is to be learned, 0 elsewhere
    loss_weight: (
        np.ndarray
    )  # [S] float32 weight of that prediction; 0 where nothing is to be learned

    @property
    def length(self) -> int:
        return self.kind.shape[-1]


class Text(NamedTuple):
    """A run of text tokens.

    Runs of one `turn` above 0 are a branch: they see turn 0 and one another, not other turns, as if each turn were alone behind turn 0.
    """

    token_ids: Sequence[int]
    weight: float = 0.0  # loss weight of predicting each of them; 0: context only
    turn: int = 0


class Clip(NamedTuple):
    """A video (or an image: one frame) as the (rows, columns) of each frame's patch grid, in temporal order."""

    grids: Sequence[tuple[int, int]]
    bare: bool = False  # whether frames are patches alone, without <FRAME> and <LINE>


def frame_tokens(rows: int, columns: int, bare: bool = False) -> int:
    """Tokens of one frame of rows x columns patches."""
    return rows * columns + (0 if bare else rows + 1)


def clip_tokens(clip: Clip) -> int:
    """Tokens of all frames of a clip."""
    return sum(frame_tokens(*grid, clip.bare) for grid in clip.grids)


class _Frame(NamedTuple):
    """What every frame of one grid shares; read-only, because it is cached."""

    kind: np.ndarray  # [n] a Kind
    head: int  # tokens in front of the rows: <FRAME>, or none
    patch: np.ndarray  # [h*w] where the patches stand in the frame
    row: np.ndarray  # [n - head] row of each token behind the head
    tube: np.ndarray  # [n - head] tube of each token behind the head, from 0
    cell: np.ndarray  # [n, 4]


@functools.lru_cache(maxsize=1024)
def _frame(rows: int, columns: int, bare: bool) -> _Frame:
    if rows < 1 or columns < 1:
        raise LayoutError(
            f"a frame of {rows} x {columns} patches has no tokens; both sides need at least one patch"
        )
    head, width = (0, columns) if bare else (1, columns + 1)
    in_row = np.arange(rows * width, dtype=np.int32)
    row, column = in_row // width, in_row % width
    is_line = column == columns
    cell = np.stack([row, column, np.full_like(row, rows), np.full_like(row, columns)], axis=-1)
    return _Frame(
        kind=np.append([Kind.FRAME] * head, np.where(is_line, Kind.LINE, Kind.PATCH)).astype(
            np.int32
        ),
        head=head,
        patch=head + np.flatnonzero(~is_line),
        row=row,
        tube=np.where(is_line, rows * columns + row, row * columns + column).astype(np.int32),
        cell=np.concatenate(
            [np.full((head, 4), -1, np.int32), np.where(is_line[:, None], -1, cell)]
        ),
    )


def build_layout(parts: Sequence[Text | Clip]) -> TokenLayout:
    """Lays out one example; patches count from 0 in the order of the clips, frames and rows given.

    Frames of one clip that share a grid share tubes, whatever stands between them; clips never share tubes.

    Raises:
      LayoutError: a grid without patches; an answer that directly follows a visual token or opens the example (the token before an answer
        must be text, because text is what survives every merge) or its turn; something of an earlier turn behind a later one.
    """
    length = sum(
        len(part.token_ids)
        if isinstance(part, Text)
        else sum(len(_frame(*grid, part.bare).kind) for grid in part.grids)
        for part in parts
    )
    if length == 0:
        raise LayoutError("an example needs at least one token")
    arrays = {
        name: np.full((length, 4) if name == "cell" else length, -1, np.int32)
        for name in TokenLayout._fields[:7]
    }
    arrays["token_id"][:] = 0
    weight = np.zeros(
        length + 1, np.float32
    )  # of predicting each token; the last one has no successor
    turn, at = np.zeros(length, np.int32), 0
    seen = dict.fromkeys(("patches", "frames", "rows", "tubes"), 0)
    for part in parts:
        if isinstance(part, Clip):
            at = _lay_clip(arrays, at, part, seen)
            continue
        span = slice(at, at + len(part.token_ids))
        arrays["kind"][span], arrays["token_id"][span], weight[span], turn[span] = (
            Kind.TEXT,
            part.token_ids,
            part.weight,
            part.turn,
        )
        at = span.stop
    if np.any(np.diff(turn) < 0):
        raise LayoutError("turns must come in order behind what they share")
    starts = np.flatnonzero(np.diff(turn, prepend=0))
    learned = weight[1:] > 0
    if (
        weight[0] > 0
        or np.any(learned & (arrays["kind"] != Kind.TEXT))
        or np.any(weight[starts] > 0)
    ):
        raise LayoutError(
            "an answer must follow a text token, not open the example or a turn, or follow a visual token"
        )
    target = np.zeros(length, np.int32)
    target[:-1] = np.where(learned[:-1], arrays["token_id"][1:], 0)
    return TokenLayout(
        **arrays,
        position=_positions(length, starts),
        turn=turn,
        segment=np.ones(length, np.int32),
        target=target,
        loss_weight=weight[1:],
    )


def _positions(length: int, starts: np.ndarray) -> np.ndarray:
    """int32 [S]: counted from 0; every turn, beginning at `starts`, counts on from what all turns share."""
    position = np.arange(length, dtype=np.int32)
    for start in starts[1:]:
        position[start:] = starts[0] + np.arange(length - start)
    return position


def _lay_clip(arrays: dict[str, np.ndarray], start: int, clip: Clip, seen: dict[str, int]) -> int:
    """Writes a clip's tokens from `start` on, frames of one grid at a time; advances the numbers in `seen` and returns the end."""
    tube_base: dict[tuple[int, int], int] = {}
    for (r, c), group in itertools.groupby(clip.grids):
        shared, n = _frame(r, c, clip.bare), len(list(group))
        if (r, c) not in tube_base:
            tube_base[r, c] = seen["tubes"]
            seen["tubes"] += r * c + r
        end = start + n * len(shared.kind)
        view = {
            name: array[start:end].reshape(n, len(shared.kind), *array.shape[1:])
            for name, array in arrays.items()
        }
        nth = np.arange(n, dtype=np.int32)[:, None]
        view["kind"][:] = shared.kind
        view["patch_index"][:, shared.patch] = seen["patches"] + np.arange(
            n * r * c, dtype=np.int32
        ).reshape(n, r * c)
        view["frame"][:] = seen["frames"] + nth
        view["row"][:, shared.head :] = seen["rows"] + nth * r + shared.row
        view["tube"][:, shared.head :] = tube_base[r, c] + shared.tube
        view["cell"][:] = shared.cell
        seen["patches"], seen["frames"], seen["rows"] = (
            seen["patches"] + n * r * c,
            seen["frames"] + n,
            seen["rows"] + n * r,
        )
        start = end
    return start


class Counts(NamedTuple):
    """What an example takes of each budget of a packed sequence."""

    tokens: int
    patches: int
    frames: int
    floor: int  # tokens for which there must be room behind the last merge


def count(
    layout: TokenLayout, merge_lines: bool = False, merges: Sequence[tuple[str, float]] = ()
) -> Counts:
    """Counts one unbatched layout.

    Args:
      layout: of one example.
      merge_lines: whether `<LINE>` tokens merge along their tubes.
      merges: policy and ratio of the merging layers up to the smallest bucket. Its floor is then what these leave at most, whatever the
        video shows; thresholds promise nothing. Without a ratio among them it is what no merge removes: text, specials and a token a tube.
    """
    kind = layout.kind
    mergeable = kind == Kind.PATCH
    if merge_lines:
        mergeable = mergeable | (kind == Kind.LINE)
    used = kind != Kind.PAD
    tubes = len(np.unique(layout.tube[mergeable]))
    left = most_left(int(mergeable.sum()), tubes, merges)
    return Counts(
        tokens=int(used.sum()),
        patches=int((kind == Kind.PATCH).sum()),
        frames=int(layout.frame.max(initial=-1)) + 1,
        floor=int((used & ~mergeable).sum()) + left,
    )


def most_left(mergeable: int, tubes: int, merges: Sequence[tuple[str, float]]) -> int:
    """The mergeable tokens of one example, of so many tubes, that merging leaves at most; see `count`."""
    ratios = [
        (policy, Fraction(ratio).limit_denominator(10_000))
        for policy, ratio in merges
        if policy != "threshold"
    ]
    left = mergeable if ratios else tubes
    for policy, ratio in ratios:
        ends = (
            tubes if policy == "pool" else 0
        )  # pooling counts along each tube, and may leave one more of it
        left = max(tubes, min(left, math.ceil(ratio * left) + ends))
    return left


def pack(layouts: Sequence[TokenLayout], length: int) -> TokenLayout:
    """Joins examples into one sequence of `length` tokens, padded with PAD; the k-th example becomes segment k+1.

    Patch, frame, row and tube numbers are shifted so that they stay unique; the patch arrays must be concatenated in the same order.

    Raises:
      LayoutError: the examples do not fit.
    """
    total = sum(layout.length for layout in layouts)
    if total > length:
        raise LayoutError(f"{total} tokens do not fit a sequence of {length}")
    shifts = dict.fromkeys(("patch_index", "frame", "row", "tube"), 0)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in TokenLayout._fields}
    for k, layout in enumerate(layouts):
        for name, array in layout._asdict().items():
            if name in shifts:
                pieces[name].append(np.where(array >= 0, array + shifts[name], -1))
                shifts[name] += int(array.max(initial=-1)) + 1
            elif name == "segment":
                pieces[name].append(np.full_like(array, k + 1))
            else:
                pieces[name].append(array)
    padding = length - total
    out = {}
    for name in TokenLayout._fields:
        fill = -1 if name in (*shifts, "cell") else 0
        shape = (padding, 4) if name == "cell" else (padding,)
        dtype = np.float32 if name == "loss_weight" else np.int32
        out[name] = np.concatenate([*pieces[name], np.full(shape, fill, dtype)]).astype(dtype)
    return TokenLayout(**out)
