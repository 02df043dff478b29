"""The way of many questions through a model.

items ─group_by_media→ groups ─read_ahead→ visuals ─make→ queries ─rows_of→ rows ─Buckets→ batches
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator

from elva_jax.errors import ElvaError, LayoutError
from elva_jax.inference.batches.asking import ask
from elva_jax.inference.batches.buckets import Batch, Buckets
from elva_jax.inference.batches.queries import Group, Query, Reply
from elva_jax.inference.batches.reading import Read, read_ahead, same_media
from elva_jax.inference.batches.rows import rows_of
from elva_jax.inference.model import ElvaModel
from elva_jax.ops.merging import Merging
from elva_jax.utils.failures import repr_path
from elva_jax.video.clip import Visual


class Scheduler:
    """Asks a model many questions. No answer depends on the other questions.

    Args:
      model: the model.
      read: reads one medium of an item.
      batch_size: most queries that are asked together.
      merging: whether the model's merging layers act, or others instead.
      workers: threads that read media ahead; None: one per core, at most 16.
    """

    def __init__(
        self,
        model: ElvaModel,
        read: Read,
        *,
        batch_size: int,
        merging: bool | Merging = True,
        workers: int | None = None,
    ) -> None:
        self.model, self.merging = model, merging
        self._read, self._batch_size, self._workers = read, batch_size, workers
        self._buckets = Buckets(batch_size)

    def run(
        self, windows: Iterable[Iterable[Group]], *, ahead: int | None = None
    ) -> Generator[list[Reply]]:
        """The replies to all items, some at a time and in any order.

        Args:
          windows: the groups. At the end of a window all its items are answered, whether batches
            are full or not; groups are taken from it when their media are to be read.
          ahead: most groups whose media are in memory; None: as many as a batch has queries.
        """
        reading = read_ahead(
            _marked(windows), self._read, ahead=ahead or self._batch_size, workers=self._workers
        )
        lockstep = self.model.engine.placement.lockstep
        with contextlib.closing(reading):
            for group, media in reading:
                if group is None:
                    yield from self._ask(self._buckets.flush())
                    continue
                media = same_media(lockstep, repr_path(group.items[0].name), media)
                if isinstance(media, str):
                    yield [Reply(tag=item.tag, error=media) for item in group.items]
                else:
                    yield from self._group(group, media)

    def _group(self, group: Group, visuals: tuple[Visual, ...]) -> Iterator[list[Reply]]:
        """The replies that are there once a group waits for a batch."""
        queries: list[Query] = []
        refused: list[Reply] = []
        for item in group.items:
            try:
                queries.append(item.make(visuals))
            except ElvaError as error:
                fits = not isinstance(error, LayoutError)
                refused.append(Reply(tag=item.tag, error=str(error), fits=fits))
        if refused:
            yield refused
        for row in rows_of(queries, visuals, self._batch_size):
            yield from self._ask(self._buckets.add(row))

    def _ask(self, batches: Iterator[Batch]) -> Iterator[list[Reply]]:
        for batch in batches:
            yield ask(self.model, batch, merging=self.merging)


def _marked(windows: Iterable[Iterable[Group]]) -> Iterator[Group | None]:
    """The groups of all windows, with a None after each window."""
    for window in windows:
        yield from window
        yield None
