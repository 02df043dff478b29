"""Runs every program of the grid once, so that none is compiled while requests wait."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from elva_jax.inference.continuous.grid import Grid
from elva_jax.inference.continuous.joining import BATCHED, Joining
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.slots import Fed, Slots, Where
from elva_jax.inference.kv_cache import PrefixCache
from elva_jax.ops.merging import Merging
from elva_jax.video.layout import Text

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Runs each program of one engine once."""

    programs: Programs
    joining: Joining
    grid: Grid

    def run(self, merging: Sequence[bool | Merging]) -> None:
        """Runs them all on arrays of zeros; `merging` are those that requests will ask for."""
        start = time.perf_counter()
        for each in merging:
            self._prefill(merging=each)
        self._pad()
        self._insert()
        fed = self._feed()
        for count, capacity in itertools.product(self.grid.counts, self.grid.capacities):
            self._decode(self._slots(fed, count, capacity))
        _LOG.info("programs for all shapes are ready after %.1f s", time.perf_counter() - start)

    def _prefill(self, *, merging: bool | Merging) -> None:
        """Every length, with every length that merging may leave."""
        lengths, joining = self.grid.prefixes, self.joining
        merges = joining.merging_layers(merging=merging)
        for length, rows in itertools.product(lengths, self.grid.joins):
            if rows > 1 and length > BATCHED:
                continue
            # Each merging layer leads from every length to every shorter one.
            paths = {
                (length,) * done + (shorter,) * (merges - done)
                for shorter in lengths
                for done in range(merges)
                if shorter <= length
            }
            prefix = (Text((0,) * length),)
            for path in sorted(paths) or [()]:
                joining.run_prefix([prefix] * rows, [()] * rows, merging=merging, forced=path)

    def _pad(self) -> None:
        """Prefixes from every length of the prefill or of a class to every length of a class."""
        config, programs = self.programs.config, self.programs
        wide = {length for lengths in self.grid.classes for length in lengths}
        narrow = wide.union(self.grid.prefixes)
        for rows, length, padded in itertools.product(self.grid.joins, narrow, wide):
            if length < padded:
                shape = (rows, config.num_kv_heads, length, config.head_dim)
                zeros = np.zeros(shape, jnp.dtype(config.dtype))
                layer = PrefixCache(*(jnp.asarray(zeros),) * 2, jnp.zeros(shape[::2], bool))
                programs.pad((layer,), (padded,))

    def _insert(self) -> None:
        """Every prefix into every pool, into every batch, and out of it."""
        grid, programs = self.grid, self.programs
        counts = {rows for count in grid.counts for rows, _ in grid.layouts(count)}
        for rows, lengths in itertools.product(sorted(counts - {1}), grid.classes):
            pool = programs.empty_pool(rows, lengths)
            for shorter in grid.classes:
                if all(a <= b for a, b in zip(shorter, lengths, strict=True)):
                    pool = programs.insert(pool, programs.empty_pool(1, shorter), 0)
        for rows, lengths in itertools.product(grid.joins, grid.classes):
            if rows > 1:
                programs.take_row(programs.empty_pool(rows, lengths), 0)
                programs.stack([programs.empty_pool(1, lengths)] * rows)

    def _feed(self) -> list[Fed]:
        """Questions about every class of prefixes; returns one result of each shape."""
        grid, fed = self.grid, {}
        shapes = {(1, joins) for joins in grid.joins} | {(joins, 1) for joins in grid.joins}
        for (rows, groups), lengths in itertools.product(sorted(shapes), grid.classes):
            prefix = self.programs.empty_pool(rows, lengths)
            for queries in grid.questions:
                fed[rows * groups, queries] = self.joining.run_questions(
                    prefix, rows, groups, {}, queries
                )
        return list(fed.values())

    def _slots(self, fed: Sequence[Fed], count: int, capacity: int) -> Slots:
        """Slots after all that happens to them between dispatches."""
        grid, programs = self.grid, self.programs
        slots = programs.empty_slots(count, capacity)
        for each in fed:
            if each.suffix[0].v.shape[2] <= capacity:
                index = np.full(len(each.slots.used), count, np.int32)
                slots = programs.put(slots, each, index)
        slots = programs.release(slots, np.zeros(count, bool))
        for other in grid.counts:
            programs.rearrange(slots, np.full(other, -1, np.int32), capacity)
        for other in grid.capacities:
            if other > capacity:
                programs.rearrange(slots, np.arange(count, dtype=np.int32), other)
        return slots

    def _decode(self, slots: Slots) -> None:
        """Every layout and class."""
        count = len(slots.used)
        none = np.zeros(count, np.int32)
        for (rows, groups), lengths in itertools.product(
            self.grid.layouts(count), self.grid.classes
        ):
            pool = self.programs.empty_pool(rows, lengths)
            where = Where(none, none, np.zeros((rows, groups), np.int32))
            *_, slots = self.programs.advance(pool, slots, where, 0)
