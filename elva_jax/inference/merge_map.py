"""Which patches of a prompt merged, and how many each of the remaining ones stands for.

Patches merge along tubes, so a map is a number per grid cell and frame. For one cell of five frames
of which 1 to 3 and 4 to 5 merge:

    frame    0   1   2   3   4   5
    sizes    1   0   0   3   0   2        0: the patch is part of another one
    into     0   3   3   3   5   5        the frame of the token that stands for it
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from elva_jax.inference import draw_merges
from elva_jax.inference.hidden import BlockTokens, HiddenStates
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Kind, TokenLayout
from elva_jax.video.merv import pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedPatches:
    """The patches after one merging layer and all before it.

    Attributes:
      before_layer: the decoder layer in front of which they merge.
      sizes: int32 [h, w] of each frame: how many patches the token at each cell stands for, itself
        among them; 0: it is part of a token of another frame.
      into: int32 [h, w] of each frame: the frame of the token that stands for the patch.
    """

    before_layer: int
    sizes: tuple[np.ndarray, ...]
    into: tuple[np.ndarray, ...]

    @property
    def kept(self) -> int:
        """The number of tokens that are left of all patches."""
        return sum(int((size > 0).sum()) for size in self.sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeMap:
    """The groups that merging layers made of a prompt's patches, as by `ElvaModel.merge_map`.

    Attributes:
      frames: the frames of all videos and images in order as the model saw them, uint8 [H, W, 3].
      layers: the patches after each merging layer.
    """

    frames: tuple[np.ndarray, ...]
    layers: tuple[MergedPatches, ...]

    def draw(self, layers: Literal["last", "all"] = "last") -> list[np.ndarray]:
        """The frames with the merges drawn over them, one picture for each.

        Patches that are part of another token are dark. A token that stands for several patches has
        a frame, whose color goes with their number, and the number itself.

        Args:
          layers: the patches after the last merging layer, or after all of them side by side.

        Returns:
          uint8 [H, W, 3] of one size, with even edges.
        """
        chosen = self.layers if layers == "all" else self.layers[-1:]
        grids = [[layer.sizes[n] for layer in chosen] for n in range(len(self.frames))]
        names = [f"layer {layer.before_layer}" for layer in chosen]
        return draw_merges.draw(self.frames, grids, names)

    def save(self, path: str | Path, layers: Literal["last", "all"] = "last") -> Path:
        """Writes the drawn frames: a film as .mp4, or all on one sheet as .png.

        Raises:
          ConfigError: another suffix, a sheet of too many frames, or a file that cannot be written.

        Example:
          >>> import tempfile
          >>> from elva_jax import testing
          >>> merges = testing.tiny_model().merge_map(testing.tiny_video())
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     merges.save(f"{folder}/merges.png").name
          'merges.png'
        """
        path = draw_merges.check_path(path)
        draw_merges.save(self.draw(layers), path)
        return path


def merge_map_of(hidden: HiddenStates, visuals: Sequence[Visual]) -> MergeMap:
    """The merge map of a prompt about `visuals`, from its layouts after every merging layer."""
    merged = [block for block in hidden.blocks if block.merged is not None]
    grids = [grid for visual in visuals for grid in visual.clip.grids]
    return MergeMap(
        frames=tuple(frame for visual in visuals for frame in frames_of(visual)),
        layers=tuple(_patches_after(block, hidden.layout, grids) for block in merged),
    )


def frames_of(visual: Visual) -> Iterable[np.ndarray]:
    """The frames that were cut into patches, uint8 [H, W, 3]; of MERV, its first view."""
    if visual.merv:
        shown = next(iter(pictures(visual.patches, visual.merv).values()))
        yield from (*shown,) * visual.merv.copies
        return
    side = math.isqrt(visual.patches.shape[1] // 3)
    first = 0
    for rows, columns in visual.clip.grids:
        patches = visual.patches[first : first + rows * columns]
        cells = patches.reshape(rows, columns, side, side, 3)
        yield cells.swapaxes(1, 2).reshape(rows * side, columns * side, 3)
        first += rows * columns


def _patches_after(
    block: BlockTokens, layout: TokenLayout, grids: Sequence[tuple[int, int]]
) -> MergedPatches:
    """The sizes by frame and cell, from the layouts before and after merging."""
    patch = np.flatnonzero(layout.kind == Kind.PATCH)
    token = block.survivor[patch]
    itself = block.layout.patch_index[token] == layout.patch_index[patch]
    size = np.where(itself, block.size[token], 0)
    frame, (row, column) = layout.frame[patch], layout.cell[patch, :2].T
    sizes, into = ([np.zeros(grid, np.int32) for grid in grids] for _ in range(2))
    for n in range(len(grids)):
        own = frame == n
        sizes[n][row[own], column[own]] = size[own]
        into[n][row[own], column[own]] = block.layout.frame[token[own]]
    return MergedPatches(before_layer=block.start, sizes=tuple(sizes), into=tuple(into))
