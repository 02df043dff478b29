"""Preparing a request to run: prefilling its prefix, and feeding its question after it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from elva_jax.inference.batching import text_tokens
from elva_jax.inference.continuous.grid import Grid, at_least
from elva_jax.inference.continuous.pool import Layers
from elva_jax.inference.continuous.prefixes import PrefixEntry, PrefixStore
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.running import Running
from elva_jax.inference.continuous.slots import Fed, Questions
from elva_jax.inference.sampling import GREEDY, RowSampling
from elva_jax.models.elva import merging_of
from elva_jax.ops.merging import Merging
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text

if TYPE_CHECKING:
    from elva_jax.inference.model import ElvaModel

BATCHED = 1024  # tokens; a longer prefix keeps the device busy alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Prefixes on the device, and the requests that ask about each of them."""

    layers: Layers  # B rows
    rows: list[list[Running]]

    @property
    def requests(self) -> list[Running]:
        """Those of all prefixes."""
        return [running for row in self.rows for running in row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """The tokens that were chosen after B * G questions."""

    token: np.ndarray  # int32 [B * G], first token of each answer
    alive: np.ndarray  # bool [B * G], whether the answer continues
    ended: np.ndarray  # bool [B * G], whether that token is an ending one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Requests whose questions are being fed."""

    arrays: Fed  # on the device
    requests: dict[int, Running]  # by place among the B * G questions

    def read(self) -> FirstTokens:
        """Waits for the first tokens."""
        slots = self.arrays.slots
        token, alive, ended = map(np.asarray, (slots.token, slots.alive, slots.ended))
        return FirstTokens(token=token, alive=alive, ended=ended)


class Joining:
    """Prefills prefixes and feeds questions, in shapes of the grid.

    Args:
      model: what answers.
      programs: what runs on the devices.
      grid: the shapes.
      prefixes: what has been prefilled.
    """

    def __init__(
        self, model: ElvaModel, programs: Programs, grid: Grid, prefixes: PrefixStore
    ) -> None:
        self._model, self._programs, self._grid = model, programs, grid
        self._prefixes = prefixes

    def look_up(self, joining: Sequence[Running]) -> tuple[list[Running], list[Running]]:
        """Splits requests into those that need a prefill, and those that share another's."""
        missing: dict[str, Running] = {}
        for running in joining:
            running.entry = self._prefixes.acquire(running.key)
            running.shared = running.entry is not None or running.key in missing
            if not running.shared:
                missing[running.key] = running
        return list(missing.values()), [running for running in joining if running.shared]

    def share(self, sharing: Sequence[Running]) -> None:
        """Gives requests the prefixes that others have had prefilled; None where that failed."""
        for running in sharing:
            running.prefilled = running.prefilled or time.perf_counter()
            running.entry = running.entry or self._prefixes.acquire(running.key)

    def batches(self, missing: Sequence[Running]) -> list[list[Running]]:
        """Splits requests without a prefix into batches that are prefilled together."""
        by_length: dict[object, list[Running]] = {}
        for running in missing:
            request = running.ticket.request
            length = at_least(self._grid.prefixes, request.prompt.prefix_tokens)
            alone = length > BATCHED
            by_length.setdefault(running if alone else (length, request.merging), []).append(
                running
            )
        return list(by_length.values())

    def prefill(self, batch: Sequence[Running]) -> Group:
        """Prefills the prefixes of a batch, all with the same merging, and stores them."""
        requests = [running.ticket.request for running in batch]
        layers, tokens, length = self.run_prefix(
            [request.prompt.prefix for request in requests],
            [request.media for request in requests],
            merging=requests[0].merging,
            stretch=[running.stretch for running in batch],
        )
        rows = len(layers[0].valid)
        entries = [
            PrefixEntry(
                key=batch[row].key,
                layers=layers if rows == 1 else self._programs.take_row(layers, row),
                lengths=tuple(layer.valid.shape[1] for layer in layers),
                tokens=tuple(int(n) for n in tokens[:, row]),
                length=int(length[row]),
                stretch=batch[row].stretch,
            )
            for row, request in enumerate(requests)
        ]
        now = time.perf_counter()
        for running, entry in zip(batch, entries, strict=True):
            self._prefixes.add(entry)
            running.entry, running.prefilled = entry, running.prefilled or now
        return Group(layers=layers, rows=[[running] for running in batch])

    def merging_layers(self, *, merging: bool | Merging) -> int:
        """The number of merging layers that act on a prefix."""
        if isinstance(merging, bool):
            return len(merging_of(self._model.engine.config).layers) if merging else 0
        return len(merging.layers)

    def run_prefix(
        self,
        prefixes: Sequence[Sequence[Text | Clip]],
        media: Sequence[Sequence[Visual]],
        *,
        merging: bool | Merging,
        stretch: Sequence[int] = (),
        forced: Sequence[int] = (),
    ) -> tuple[Layers, np.ndarray, np.ndarray]:
        """Runs prefixes through the decoder, padded to a class of the grid.

        `forced` are the lengths after the merging layers, which the warm-up sets.

        Returns:
          the keys and values, the tokens per layer block, and the position after each prefix.
        """
        grid, merges = self._grid, iter(forced)

        def lengths(name: str, tokens: int, smallest: int = 0) -> int:
            del smallest
            if forced and name.startswith("merge"):
                return next(merges)
            return at_least(grid.prefixes, tokens)

        more = at_least(grid.joins, len(prefixes)) - len(prefixes)
        prefixes, media = [*prefixes, *[prefixes[-1]] * more], [*media, *[media[-1]] * more]
        stretch = [*stretch, *list(stretch[-1:]) * more]
        rows = self._model.rows(prefixes, media, lengths, stretch)
        prefix = self._model.engine.prefill(rows, merging=merging, lengths=lengths)
        target = grid.class_of([layer.valid.shape[1] for layer in prefix.layers])
        return self._programs.pad(prefix.layers, target), prefix.tokens, prefix.length

    def groups(self, ready: Sequence[Running]) -> list[Group]:
        """Requests whose prefixes are there, as many as are fed together.

        Those about one prefix share it; single ones about several are fed beside each other. Where
        that would take more groups, short prefixes are copied for each of their requests.
        """
        most = self._grid.joins[-1]
        found: dict[int, tuple[PrefixEntry, list[Running]]] = {}
        for running in ready:
            if running.entry is not None:
                found.setdefault(id(running.entry), (running.entry, []))[1].append(running)
        everyone = [(entry, running) for entry, readers in found.values() for running in readers]
        shared = [each for each in found.values() if len(each[1]) > 1]
        single = [(entry, readers[0]) for entry, readers in found.values() if len(readers) == 1]
        parts = [*(len(readers) for _, readers in shared), len(single)]
        short = all(max(entry.lengths) <= BATCHED for entry, _ in shared)
        if short and sum(-(-part // most) for part in parts) > -(-len(everyone) // most):
            shared, single = [], everyone
        groups = [
            Group(layers=entry.layers, rows=[requests[start : start + most]])
            for entry, requests in shared
            for start in range(0, len(requests), most)
        ]
        for start in range(0, len(single), most):
            some = single[start : start + most]
            layers = self._beside([entry for entry, _ in some])
            groups.append(Group(layers=layers, rows=[[running] for _, running in some]))
        return groups

    def _beside(self, entries: Sequence[PrefixEntry]) -> Layers:
        """Several prefixes as one batch."""
        if len(entries) == 1:
            return entries[0].layers
        lengths = self._grid.class_of(
            [max(each) for each in zip(*(entry.lengths for entry in entries), strict=True)]
        )
        rows = [
            entry.layers if entry.lengths == lengths else self._programs.pad(entry.layers, lengths)
            for entry in entries
        ]
        more = at_least(self._grid.joins, len(rows)) - len(rows)
        return self._programs.stack([*rows, *rows[-1:] * more])

    def feed(self, group: Group) -> Asked:
        """Starts to feed the questions of a group."""
        batch = len(group.layers[0].valid)
        groups = at_least(self._grid.joins, max(map(len, group.rows)))
        requests = {
            b * groups + g: running
            for b, row in enumerate(group.rows)
            for g, running in enumerate(row)
        }
        fed = self.run_questions(group.layers, batch, groups, requests)
        return Asked(arrays=fed, requests=requests)

    def run_questions(
        self,
        layers: Layers,
        batch: int,
        groups: int,
        requests: dict[int, Running],
        queries: int = 0,
    ) -> Fed:
        """Feeds the questions at places of [B, G]; Q holds `queries` and the longest of them."""
        count, static = batch * groups, self._programs.static
        longest = max((len(running.text) for running in requests.values()), default=queries)
        text = np.zeros((count, at_least(self._grid.questions, longest)), np.int32)
        length, position, left, step = (np.zeros(count, np.int32) for _ in range(4))
        stretch = np.zeros(batch, np.int32)
        mask = np.zeros((count, static.vocab_size), bool)
        sampling = [GREEDY] * count
        for place, running in requests.items():
            request, ids, entry = running.ticket.request, running.text, running.entry
            assert entry is not None
            text[place, : len(ids)], length[place] = ids, len(ids)
            position[place], stretch[place // groups] = entry.length, entry.stretch
            left[place], step[place] = running.left, running.said
            sampling[place] = request.sampling
            if request.sampling.penalizes:
                held = np.asarray([*text_tokens(request.prompt.prefix), *ids])
                mask[place, held[held < static.vocab_size]] = True
        shape = (batch, groups)
        return self._programs.feed(
            layers,
            Questions(
                text.reshape(*shape, -1),
                length.reshape(shape),
                position.reshape(shape),
                left.reshape(shape),
                step.reshape(shape),
                stretch,
            ),
            RowSampling.of(sampling),
            mask,
        )
