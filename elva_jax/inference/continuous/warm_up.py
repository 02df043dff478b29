"""Runs every program of the grid once, so that none is compiled while requests wait."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence

import numpy as np

from elva_jax.inference.continuous import slots as device
from elva_jax.inference.continuous.batch import MOST_STEPS
from elva_jax.inference.continuous.grid import Class, Grid
from elva_jax.inference.continuous.joining import BATCHED, Joining, pad_layer, take_row
from elva_jax.inference.continuous.pool import Layers, empty_pool, insert
from elva_jax.inference.continuous.slots import Fed, Slots, Static
from elva_jax.inference.params import Weights
from elva_jax.ops.merging import Merging
from elva_jax.video.layout import Text

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The programs of one engine."""

    static: Static
    weights: Weights
    joining: Joining
    grid: Grid

    def warm_up(self, merging: Sequence[bool | Merging]) -> None:
        """Runs them all on arrays of zeros; `merging` are those that requests will ask for."""
        start = time.perf_counter()
        for each in merging:
            self._prefill(merging=each)
        pools = self._pools()
        fed = self._feed(pools)
        for slots in self._slots(fed):
            self._advance(slots, pools)
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

    def _pools(self) -> dict[tuple[int, Class], Layers]:
        """Pools of every number of prefixes and class, with every prefix copied into them."""
        grid = self.grid
        counts = {rows for count in grid.counts for rows, _ in grid.layouts(count)}
        pools = {
            (rows, lengths): empty_pool(self.static.config, rows, lengths)
            for rows in sorted({1, *counts, *grid.joins})
            for lengths in grid.classes
        }
        for (rows, lengths), pool in pools.items():
            for shorter in grid.classes:
                if rows > 1 and all(a <= b for a, b in zip(shorter, lengths, strict=True)):
                    pool = insert(pool, pools[1, shorter], np.int32(0))
            pools[rows, lengths] = pool
        wide = {length for lengths in grid.classes for length in lengths}
        for rows, lengths in itertools.product(grid.joins, grid.classes):
            if rows > 1:
                take_row(pools[rows, lengths], np.int32(0))
            for layer, length in itertools.product(set(lengths), wide):
                if layer < length:
                    pad_layer(pools[rows, lengths][lengths.index(layer)], length)
        return pools

    def _feed(self, pools: dict[tuple[int, Class], Layers]) -> list[Fed]:
        """Questions about every class of prefixes; returns one result of each shape."""
        grid, fed = self.grid, {}
        shapes = {(1, joins) for joins in grid.joins} | {(joins, 1) for joins in grid.joins}
        for (rows, groups), lengths in itertools.product(sorted(shapes), grid.classes):
            for queries in grid.questions:
                fed[rows * groups, queries] = self.joining.run_questions(
                    pools[rows, lengths], rows, groups, {}, queries
                )
        return list(fed.values())

    def _slots(self, fed: Sequence[Fed]) -> list[Slots]:
        """Slots of every number and capacity, after all that happens to them between dispatches."""
        grid, out = self.grid, []
        for count, capacity in itertools.product(grid.counts, grid.capacities):
            slots = device.empty_slots(self.static, count, capacity)
            for each in fed:
                if each.suffix[0].k.shape[2] <= capacity:
                    index = np.full(len(each.slots.used), count, np.int32)
                    slots = device.put(slots, each, index)
            slots = device.release(slots, np.zeros(count, bool))
            for other in grid.counts:
                device.rearrange(slots, np.full(other, -1, np.int32), capacity)
            for other in grid.capacities:
                if other > capacity:
                    device.rearrange(slots, np.arange(count, dtype=np.int32), other)
            out.append(slots)
        return out

    def _advance(self, slots: Slots, pools: dict[tuple[int, Class], Layers]) -> None:
        """Decoding with every layout and class."""
        count = len(slots.used)
        for (rows, groups), lengths in itertools.product(
            self.grid.layouts(count), self.grid.classes
        ):
            where = np.full(count, rows, np.int32), np.zeros(count, np.int32)
            *_, slots = device.advance(
                self.static,
                self.weights,
                pools[rows, lengths],
                slots,
                where,
                np.int32(0),
                groups,
                MOST_STEPS,
            )
