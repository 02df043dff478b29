"""TokenLayout: what every token of a sequence is, settled on the host in NumPy.

A frame of h x w patches is `<FRAME>`, then h rows of w patches closed by `<LINE>`: h*w + h + 1 tokens (paper, section 3.1).
Everything ragged about video ends here: the model only gathers, scatters and reduces by these arrays.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
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
    cell: np.ndarray  # [S, 4] grid row, grid column, grid rows, grid columns of a PATCH; -1 elsewhere
    position: np.ndarray  # [S] RoPE position, counted from 0 in every example; survivors of a merge keep theirs
    segment: np.ndarray  # [S] which packed example, from 1; 0 is padding
    target: np.ndarray  # [S] vocabulary id of the next token where it is to be learned, 0 elsewhere
    loss_weight: np.ndarray  # [S] float32 weight of that prediction; 0 where nothing is to be learned

    @property
    def length(self) -> int:
        return self.kind.shape[-1]


class Text(NamedTuple):
    """A run of text tokens; `weight` is the loss weight of predicting each of them (0: context only)."""

    token_ids: Sequence[int]
    weight: float = 0.0


class Clip(NamedTuple):
    """A video (or an image: one frame) as the (rows, columns) of each frame's patch grid, in temporal order."""

    grids: Sequence[tuple[int, int]]


def frame_tokens(rows: int, columns: int) -> int:
    """Tokens of one frame of rows x columns patches."""
    return rows * columns + rows + 1


def build_layout(parts: Sequence[Text | Clip]) -> TokenLayout:
    """Lays out one example; patches count from 0 in the order of the clips, frames and rows given.

    Frames of one clip that share a grid share tubes, whatever stands between them; clips never share tubes.

    Raises:
      LayoutError: a grid without patches, or an answer that directly follows a visual token or opens the example
        (the token before an answer must be text, because text is what survives every merge).
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in TokenLayout._fields}
    weights: list[np.ndarray] = []  # loss weight of predicting each token, shifted below
    patches = frames = rows_seen = tubes = 0

    def add(length: int, weight: float = 0.0, **values) -> None:
        for name in TokenLayout._fields:
            if name in ("position", "segment", "target", "loss_weight"):
                continue
            default = 0 if name == "token_id" else -1
            shape = (length, 4) if name == "cell" else (length,)
            columns[name].append(np.broadcast_to(np.asarray(values.get(name, default), np.int32), shape))
        weights.append(np.full(length, weight, np.float32))

    for part in parts:
        if isinstance(part, Text):
            ids = np.asarray(part.token_ids, np.int32)
            add(len(ids), part.weight, kind=Kind.TEXT, token_id=ids)
            continue
        tube_base: dict[tuple[int, int], int] = {}
        for grid in part.grids:
            r, c = grid
            if r < 1 or c < 1:
                raise LayoutError(f"a frame of {r} x {c} patches has no tokens; both sides need at least one patch")
            if grid not in tube_base:
                tube_base[grid] = tubes
                tubes += r * c + r
            add(1, kind=Kind.FRAME, frame=frames)
            in_row = np.arange(r * (c + 1))
            row, column = in_row // (c + 1), in_row % (c + 1)
            is_line = column == c
            index = row * c + column
            cell = np.stack([row, column, np.full_like(row, r), np.full_like(row, c)], axis=-1)
            add(
                len(in_row),
                kind=np.where(is_line, Kind.LINE, Kind.PATCH),
                patch_index=np.where(is_line, -1, patches + index),
                frame=frames,
                row=rows_seen + row,
                tube=tube_base[grid] + np.where(is_line, r * c + row, index),
                cell=np.where(is_line[:, None], -1, cell),
            )
            patches, frames, rows_seen = patches + r * c, frames + 1, rows_seen + r
    if not weights:
        raise LayoutError("an example needs at least one part")
    arrays = {name: np.concatenate(values).astype(np.int32) for name, values in columns.items() if values}
    length = len(arrays["kind"])
    weight = np.concatenate(weights)
    learned = np.append(weight[1:] > 0, False)
    if weight[0] > 0 or np.any(learned & (arrays["kind"] != Kind.TEXT)):
        raise LayoutError("an answer must follow a text token, not open the example or follow a visual token")
    arrays["position"] = np.arange(length, dtype=np.int32)
    arrays["segment"] = np.ones(length, np.int32)
    arrays["target"] = np.where(learned, np.append(arrays["token_id"][1:], 0), 0).astype(np.int32)
    arrays["loss_weight"] = np.append(weight[1:], 0).astype(np.float32)
    return TokenLayout(**arrays)


class Counts(NamedTuple):
    """What an example takes of each budget of a packed sequence."""

    tokens: int
    patches: int
    frames: int
    floor: int  # tokens that no merge removes: text, specials and one token a tube


def count(layout: TokenLayout, merge_lines: bool = False) -> Counts:
    """Counts one unbatched layout; `merge_lines` says whether `<LINE>` tokens merge along their tubes."""
    kind = layout.kind
    mergeable = kind == Kind.PATCH
    if merge_lines:
        mergeable = mergeable | (kind == Kind.LINE)
    used = kind != Kind.PAD
    tubes = len(np.unique(layout.tube[mergeable]))
    return Counts(
        tokens=int(used.sum()),
        patches=int((kind == Kind.PATCH).sum()),
        frames=int((kind == Kind.FRAME).sum()),
        floor=int((used & ~mergeable).sum()) + tubes,
    )


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
