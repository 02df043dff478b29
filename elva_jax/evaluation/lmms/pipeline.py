"""Questions in the order of the requests in, replies in the same order out.

    windows of a few batches: task code → media read in threads, one window ahead → rows → batches

A window is what a killed run loses at most: every reply is handed over as soon as all before it
are there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from elva_jax.errors import DataError, ElvaError
from elva_jax.evaluation.lmms.asking import Asker, Reply
from elva_jax.evaluation.lmms.generation import Generation
from elva_jax.evaluation.lmms.media import Medium, media_key
from elva_jax.evaluation.lmms.requests import Ask, guarded
from elva_jax.evaluation.lmms.rows import Rendered, Wish, batches, render, rows_of
from elva_jax.inference.long_context import rope_factor
from elva_jax.video.clip import Visual

WINDOW = 4  # batches whose questions are sorted by length
MOST_READERS = 8
SKIPPED = "nobody waits for it"

Read = Callable[[Medium, str], Visual]
Reading = dict[Hashable, Future[Visual]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One request.

    Attributes:
      name: in messages.
      make: runs the task's code, and returns the question.
      generation: how the answer is written; None: an option is scored.
      option: the option's text.
      greedy: whether to find out if the option is what the model would write.
      skipped: whether nobody waits for the reply.
    """

    name: str
    make: Callable[[], Ask]
    generation: Generation | None = None
    option: str = ""
    greedy: bool = False
    skipped: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """A window's questions while their media are read."""

    jobs: Sequence[Job]
    asks: Sequence[Ask]
    reading: Reading


class Pipeline:
    """Asks a model the questions of requests.

    Args:
      asker: asks the model.
      read: reads one medium, whose name in errors it is given.
      batch: most questions that are asked together.

    Attributes:
      refused: name of the request and reason, for every question that could not be asked.
    """

    def __init__(self, asker: Asker, read: Read, batch: int) -> None:
        self._asker, self._read, self._batch = asker, read, batch
        self.refused: list[tuple[str, str]] = []

    @property
    def window(self) -> int:
        """Number of requests that are sorted together."""
        return WINDOW * self._batch

    def run(self, jobs: Sequence[Job]) -> Iterator[Reply]:
        """The replies in order; the media of the next window are read meanwhile."""
        starts = range(0, len(jobs), self.window)
        windows = [jobs[start : start + self.window] for start in starts]
        pool = ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1))
        try:
            begun = self._begin(pool, windows[0], {}) if windows else None
            for following in [*windows[1:], ()]:
                if (current := begun) is not None:
                    begun = self._begin(pool, following, current.reading)
                    yield from self._replies(current)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, jobs: Sequence[Job], before: Reading) -> _Window:
        """Runs the task code of a window, and starts to read its media, each once."""
        asks = [Ask(refused=SKIPPED) if job.skipped else guarded(job.make) for job in jobs]
        reading: Reading = {}
        for job, ask in zip(jobs, asks, strict=True):
            for medium in ask.media:
                key = media_key(medium)
                if key not in reading:
                    reading[key] = before.get(key) or pool.submit(self._read, medium, job.name)
        return _Window(jobs=jobs, asks=asks, reading=reading)

    def _replies(self, window: _Window) -> Iterator[Reply]:
        """The replies of a window, each as soon as those before it are there."""
        done: dict[int, Reply] = {}
        alike: dict[Generation | None, list[tuple[Wish, Rendered]]] = {}
        for index, job in enumerate(window.jobs):
            try:
                found = self._render(index, job, window)
            except ElvaError as error:
                done[index] = Reply(refused=str(error))
                if not job.skipped:
                    self.refused.append((job.name, str(error)))
            else:
                alike.setdefault(job.generation, []).append(found)
        given = 0
        for answered in self._answers(alike):
            done |= answered
            while given in done:
                yield done.pop(given)
                given += 1

    def _render(self, index: int, job: Job, window: _Window) -> tuple[Wish, Rendered]:
        """A question with its media read.

        Raises:
          ElvaError: it cannot be asked.
        """
        ask, model = window.asks[index], self._asker.model
        if ask.refused:
            raise DataError(ask.refused)
        wish = Wish(
            index=index,
            ask=ask,
            visuals=tuple(window.reading[media_key(medium)].result() for medium in ask.media),
            option=None if job.generation else job.option,
            greedy=job.greedy,
        )
        rendered = render(model, wish, job.generation.max_new_tokens if job.generation else 0)
        rope_factor(model.model_config, rendered.tokens)  # one question alone may be too long
        return wish, rendered

    def _answers(
        self, alike: Mapping[Generation | None, Sequence[tuple[Wish, Rendered]]]
    ) -> Iterator[dict[int, Reply]]:
        """The replies of each batch by number; an empty one at the start."""
        yield {}
        for generation, questions in alike.items():
            rows = rows_of(self._asker.model, questions, self._batch)
            for batch in batches(rows, self._batch):
                if generation is None:
                    yield self._asker.score(batch)
                else:
                    yield self._asker.write(batch, generation)
