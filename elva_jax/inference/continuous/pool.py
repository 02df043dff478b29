"""The prefixes that the running batch reads: P rows of one class, and which slot reads which row.

With one prefix, the pool is that prefix's own arrays. Otherwise prefixes are copied into it as
their first request joins, and never while tokens are decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.continuous.grid import Class, Grid, Layout
from elva_jax.inference.continuous.prefixes import PrefixEntry
from elva_jax.inference.kv_cache import PrefixCache, split_heads
from elva_jax.utils.arrays import AnyArray

Layers = tuple[PrefixCache, ...]


@partial(jax.jit, static_argnums=(0, 1, 2))
def empty_pool(config: ModelConfig, rows: int, lengths: Class) -> Layers:
    """P = `rows` unused prefixes."""

    def layer(length: int) -> PrefixCache:
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        zeros = [split_heads(jnp.zeros(shape, config.dtype)) for _ in range(2)]
        return PrefixCache(zeros[0], zeros[1], jnp.zeros((rows, length), bool))

    return tuple(map(layer, lengths))


@partial(jax.jit, donate_argnums=0)
def insert(pool: Layers, prefix: Layers, row: Int[AnyArray, ""]) -> Layers:
    """Copies a prefix, which may be shorter, into a row of the pool."""

    def one(old: PrefixCache, new: PrefixCache) -> PrefixCache:
        more = old.valid.shape[1] - new.valid.shape[1]
        valid = jnp.pad(new.valid, [(0, 0), (0, more)])
        k, v = (
            split_heads(jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), length, axis=0))
            for a, b, length in ((old.k, new.k, row), (old.v, new.v, row))
        )
        return PrefixCache(k, v, jax.lax.dynamic_update_slice_in_dim(old.valid, valid, row, axis=0))

    return tuple(one(old, new) for old, new in zip(pool, prefix, strict=True))


class Pool:
    """The prefixes of the running slots.

    Args:
      config: the model.
      grid: the layouts.
    """

    def __init__(self, config: ModelConfig, grid: Grid) -> None:
        self._config, self._grid = config, grid
        self.clear()

    def clear(self) -> None:
        """Gives up all memory."""
        self._rows: list[PrefixEntry | None] = []  # what each row holds
        self._readers: dict[int, tuple[PrefixEntry, int]] = {}  # by slot: its prefix and row
        self._count = 0
        self.layers: Layers = ()
        self.layout: Layout = (0, 0)
        self.lengths: Class = ()

    def arrange(self, entries: Mapping[int, PrefixEntry], count: int, *, afresh: bool) -> None:
        """Makes the pool hold the prefix of every slot.

        What it holds already stays where it is, unless `afresh` or something does not fit: then
        the smallest layout and class are taken.
        """
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
            self.layers = empty_pool(self._config, rows, self.lengths)
        self._add(entries)

    def smaller(self, entries: Sequence[PrefixEntry], count: int) -> bool:
        """Whether `arrange(…, afresh=True)` would read fewer bytes per token."""
        users = Counter(map(id, entries))
        rows, _ = self._grid.layout(count, tuple(users.values()))
        lengths = self._grid.class_of(
            [max(each) for each in zip(*(entry.lengths for entry in entries), strict=True)]
        )
        return rows * sum(lengths) < self.layout[0] * sum(self.lengths)

    def where(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The row of every slot and its place among the readers of that row."""
        rows = np.full(count, self.layout[0], np.int32)
        places = np.zeros(count, np.int32)
        readers: Counter[int] = Counter()
        for slot, (_, row) in self._readers.items():
            rows[slot], places[slot] = row, readers[row]
            readers[row] += 1
        return rows, places

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
                self.layers = insert(self.layers, entry.layers, np.int32(row))
        return True
