"""Which slot of the running batch reads which prefix of the pool.

With one prefix, the pool is that prefix's own arrays. Otherwise prefixes are copied into it as
their first request joins, and never while tokens are decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from elva_jax.inference.continuous.grid import Class, Grid, Layout
from elva_jax.inference.continuous.pool import Layers
from elva_jax.inference.continuous.prefixes import PrefixEntry
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.slots import Where


class Readers:
    """The prefixes of the running slots.

    Args:
      programs: what copies prefixes.
      grid: the layouts.
    """

    def __init__(self, programs: Programs, grid: Grid) -> None:
        self._programs, self._grid = programs, grid
        self.clear()

    def clear(self) -> None:
        """Gives up all memory."""
        self._rows: list[PrefixEntry | None] = []  # what each row holds
        self._readers: dict[int, tuple[PrefixEntry, int]] = {}  # by slot: its prefix and row
        self._count = 0
        self._where: Where | None = None
        self.layers: Layers = ()
        self.layout: Layout = (0, 0)
        self.lengths: Class = ()

    def arrange(self, entries: Mapping[int, PrefixEntry], count: int, *, afresh: bool) -> None:
        """Makes the pool hold the prefix of every slot.

        What it holds already stays where it is, unless `afresh` or something does not fit: then
        the smallest layout and class are taken.
        """
        self._where = None
        lengths = [entry.lengths for entry in entries.values()]
        fits = count == self._count and all(
            a <= b for each in lengths for a, b in zip(each, self.lengths, strict=True)
        )
        if not afresh and fits and self._add(entries):
            return
        self._count = count
        users = Counter(id(entry) for entry in entries.values())
        self.layout = self._grid.layout(count, tuple(users.values()))
        self.lengths = self._grid.class_of([max(each) for each in zip(*lengths, strict=True)])
        rows = self.layout[0]
        self._rows, self._readers, self.layers = [None] * rows, {}, ()
        if rows > 1:
            self.layers = self._programs.empty_pool(rows, self.lengths)
        self._add(entries)

    def smaller(self, entries: Sequence[PrefixEntry], count: int) -> bool:
        """Whether `arrange(…, afresh=True)` would read fewer bytes per token."""
        users = Counter(map(id, entries))
        rows, _ = self._grid.layout(count, tuple(users.values()))
        lengths = self._grid.class_of(
            [max(each) for each in zip(*(entry.lengths for entry in entries), strict=True)]
        )
        return rows * sum(lengths) < self.layout[0] * sum(self.lengths)

    def where(self, count: int) -> Where:
        """Which of so many slots reads which row."""
        if self._where is not None and len(self._where.row) == count:
            return self._where
        rows, places = np.zeros(count, np.int32), np.zeros(count, np.int32)
        slots = np.zeros(self.layout, np.int32)
        readers: Counter[int] = Counter()
        for slot, (_, row) in self._readers.items():
            rows[slot], places[slot] = row, readers[row]
            slots[row, readers[row]] = slot
            readers[row] += 1
        self._where = Where(rows, places, slots)
        return self._where

    def _add(self, entries: Mapping[int, PrefixEntry]) -> bool:
        """Finds rows for the slots, where the layout has them."""
        readers = {s: r for s, r in self._readers.items() if entries.get(s) is r[0]}
        used = Counter(row for _, row in readers.values())
        rows, groups, copies = list(self._rows), self.layout[1], []
        for slot, entry in entries.items():
            if slot in readers:
                continue
            # A row that nobody reads still has its prefix, which may be asked about again.
            holding = [r for r, held in enumerate(rows) if held is entry and used[r] < groups]
            unused = [r for r in range(len(rows)) if not used[r]]
            empty = [r for r in unused if rows[r] is None]
            row = next(iter([*holding, *empty, *unused]), None)
            if row is None:
                return False
            if rows[row] is not entry:
                rows[row] = entry
                copies.append((row, entry))
            readers[slot] = (entry, row)
            used[row] += 1
        self._rows, self._readers = rows, readers
        for row, entry in copies:
            if len(rows) == 1:
                self.layers, self.lengths = entry.layers, entry.lengths
            else:
                self.layers = self._programs.insert(self.layers, entry.layers, row)
        return True
