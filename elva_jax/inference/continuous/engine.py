"""`ContinuousEngine`: one thread owns the devices; requests come and go while it decodes."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from elva_jax.errors import ClosedError, ElvaError, QueueFullError, first_line
from elva_jax.inference.continuous.batch import RunningBatch
from elva_jax.inference.continuous.grid import make_grid, most_new_tokens
from elva_jax.inference.continuous.joining import Asked, Group, Joining
from elva_jax.inference.continuous.pace import Pace
from elva_jax.inference.continuous.prefixes import PrefixStore
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.requests import EngineSettings, GenerationRequest, Stats
from elva_jax.inference.continuous.running import Running
from elva_jax.inference.continuous.slots import Static
from elva_jax.inference.continuous.ticket import Ticket
from elva_jax.inference.continuous.waiting import Waiting
from elva_jax.inference.continuous.warm_up import WarmUp
from elva_jax.models.elva import with_merging
from elva_jax.ops.merging import NO_MERGING, Merging
from elva_jax.utils.compilation_cache import on_compilation

if TYPE_CHECKING:
    from elva_jax.inference.model import ElvaModel

_LOG = logging.getLogger(__name__)
IDLE_SECONDS = 1.0  # without requests, after which the slots' memory is given up
MOST_FAILURES = 3  # dispatches in a row that may fail before the devices count as lost


class ContinuousEngine:
    """Answers many requests at once with one model.

    Every answer equals that of `ElvaModel.generate` alone. Any thread may call any method.

    Args:
      model: what answers; its devices belong to the engine from now on.
      settings: limits.

    Raises:
      ConfigError: settings that are out of range.

    Example:
      >>> from elva_jax import testing
      >>> from elva_jax.inference.continuous import ContinuousEngine, request
      >>> model = testing.tiny_model()
      >>> video = model.read_all(testing.tiny_video())
      >>> with ContinuousEngine(model) as engine:
      ...     ticket = engine.submit(request(model, video, "What moves?", max_new_tokens=4))
      ...     pieces = "".join(event.text for event in ticket if hasattr(event, "text"))
      >>> pieces == model.answer(testing.tiny_video(), "What moves?", max_new_tokens=4)
      True
    """

    def __init__(self, model: ElvaModel, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self._model = model
        engine = model.engine
        static = Static(with_merging(engine.config, NO_MERGING), engine.vocab_size, engine.end_ids)
        self._grid = make_grid(engine.config, self.settings)
        programs = Programs(static, engine.weights, engine.placement.mesh)
        self._batch = RunningBatch(programs, self._grid)
        self._prefixes = PrefixStore(self.settings.prefix_bytes)
        self._joining = Joining(model, programs, self._grid, self._prefixes)
        self._warm_up = WarmUp(programs=programs, joining=self._joining, grid=self._grid)
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._starting: list[Running] = []  # between the queue and a slot
        self._tasks: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy = False  # whether the worker holds requests or tasks that are not in the queue
        self._draining = self._closing = self._lost = False
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._failures = 0
        self._pace = Pace(self.settings.dispatch_seconds)
        self._thread = threading.Thread(target=self._work, name="elva-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> ContinuousEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def healthy(self) -> bool:
        """Whether the worker thread lives and its devices answer."""
        return self._thread.is_alive() and not self._lost

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queues a request.

        Raises:
          QueueFullError: too many requests wait.
          ClosedError: the engine is draining or has ended.
          LayoutError: the request is longer than the engine's settings or the model allow.
        """
        most = most_new_tokens(request, self.settings, self._grid, self._model.engine.config)
        ticket = Ticket(request)
        running = Running(
            ticket=ticket, tokenizer=self._model.tokenizer, submitted=time.perf_counter(), most=most
        )
        with self._changed:
            if self._draining or not self.healthy:
                raise ClosedError("the engine takes no more requests: it is about to end")
            if self._waiting.new >= self.settings.queue:
                raise QueueFullError(
                    f"{self._waiting.new} requests are waiting, which is the most; try again later"
                )
            self._waiting.add(running)
            self._changed.notify_all()
        return ticket

    def warm_up(self, merging: Sequence[bool | Merging] = (True,)) -> float:
        """Compiles every program that requests with these mergings may need.

        Returns the seconds that it took. Compilations are counted in `stats` from here on.
        """
        start = time.perf_counter()
        self._on_worker(lambda: self._warm(merging))
        return time.perf_counter() - start

    def stats(self) -> Stats:
        """Counters, and what the engine is doing."""
        return Stats(
            healthy=self.healthy,
            draining=self._draining,
            running=len(self._batch.requests),
            queued=self._waiting.new,
            slots=self.settings.slots,
            finished=dict(self._finished),
            prefix_hits=self._counts["hits"],
            prefix_misses=self._counts["misses"],
            prefix_bytes=self._prefixes.nbytes,
            prompt_tokens=self._counts["prompt"],
            completion_tokens=self._counts["completion"],
            steps=self._counts["steps"],
            compilations=self._counts["compilations"],
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Refuses new requests and waits for the others; returns whether all have ended."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not (self._waiting or self._busy) or not self._thread.is_alive(), timeout
            )

    def close(self) -> None:
        """Ends the engine; requests that have not ended are cancelled."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _on_worker(self, task: Callable[[], Any]) -> None:
        future: Future[Any] = Future()
        with self._changed:
            if self._draining or not self.healthy:
                raise ClosedError("the engine is about to end")
            self._tasks.append((task, future))
            self._changed.notify_all()
        future.result()

    # The rest runs on the worker thread.

    def _work(self) -> None:
        try:
            with self._model.engine.placement.on(1), on_compilation(self._compiled):
                while self._wait():
                    self._turn()
        except BaseException:
            _LOG.exception("the engine's thread ended")
        finally:
            with self._changed:
                self._draining = self._lost = True
                left = [*self._batch.requests, *self._starting, *self._waiting.take()]
            for running in left:
                if not running.ticket.done:
                    self._finish(running, "cancelled")
            for _, future in self._tasks:
                future.cancel()
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Waits for something to do; False: the engine ends."""
        with self._changed:
            self._busy = bool(self._batch.requests)
            if not (self._waiting or self._tasks or self._busy):
                self._changed.notify_all()  # for `drain`
            if not self._changed.wait_for(self._has_work, IDLE_SECONDS):
                self._batch.clear()
                self._changed.wait_for(self._has_work)
            self._busy = True
            return not self._closing

    def _has_work(self) -> bool:
        return bool(self._waiting or self._tasks or self._busy or self._closing)

    def _turn(self) -> None:
        """Lets requests join, and decodes for one dispatch."""
        while self._tasks and not self._batch.requests:
            task, future = self._tasks.popleft()
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
        self._drop_cancelled()
        self._join_waiting()
        if self._batch.requests:
            self._advance()

    def _warm(self, merging: Sequence[bool | Merging]) -> None:
        try:
            self._warm_up.run(merging)
        finally:
            self._counts["compilations"] = 0

    def _compiled(self, _: float) -> None:
        """Counts the programs of this thread; other threads may compile for themselves."""
        self._counts["compilations"] += threading.current_thread() is self._thread

    def _next(self) -> list[Running]:
        """Requests from the queue that join now."""
        free = self.settings.slots - len(self._batch.requests)
        with self._changed:
            joining = [] if self._tasks else self._waiting.take(min(free, self.settings.joins))
        self._starting, now = joining, time.perf_counter()
        for running in joining:
            if not running.began:
                running.began = now
                self._counts["prompt"] += running.ticket.request.prompt.tokens
            running.begin(self._model.engine.config)
        return joining

    def _join_waiting(self) -> None:
        """Lets requests join, group by group, for about as long as a dispatch takes."""
        end = time.perf_counter() + self.settings.dispatch_seconds
        while joining := self._next():
            for asked in self._start(joining):
                self._admit(asked)
            self._starting = []
            if time.perf_counter() > end:
                break

    def _start(self, joining: Sequence[Running]) -> list[Asked]:
        """Prefills what is missing, and starts to feed the questions."""
        missing, sharing = self._joining.look_up(joining)
        self._counts["misses"] += len(missing)
        self._counts["hits"] += len(sharing)
        groups = []
        for batch in self._joining.batches(missing):
            groups += self._prefill_groups(batch)
        self._joining.share(sharing)
        for running in sharing:
            if running.entry is None:
                self._finish(running, "error", error="the prefix of this request failed")
        groups += self._joining.groups(sharing)
        fed = [
            self._guarded(group.requests, partial(self._joining.feed, group)) for group in groups
        ]
        return [asked for asked in fed if asked is not None]

    def _prefill_groups(self, batch: list[Running]) -> list[Group]:
        """Prefills a batch, or each request alone where the batch fails: it may be due to one."""
        if len(batch) > 1:
            try:
                return [self._joining.prefill(batch)]
            except Exception as error:
                _LOG.warning("%d requests are taken one by one: %s", len(batch), first_line(error))
        groups = [self._guarded([each], partial(self._joining.prefill, [each])) for each in batch]
        return [group for group in groups if group is not None]

    def _admit(self, asked: Asked) -> None:
        """Waits for the first tokens of a group, sends them and gives slots."""
        requests = list(asked.requests.values())
        first = self._guarded(requests, asked.read)
        if first is None:
            return
        staying: dict[int, Running] = {}
        for place, running in asked.requests.items():
            tokens = [] if first.ended[place] else [int(first.token[place])]
            alive = bool(first.alive[place])
            self._counts["completion"] += len(tokens)
            if running.add(tokens, alive=alive, ended=bool(first.ended[place])):
                self._forget(running)
            elif running.crosses:
                self._cross(running)
            else:
                staying[place] = running
        if staying:
            everyone = [*self._batch.requests, *staying.values()]
            join = partial(self._batch.join, staying, asked.arrays)
            self._guarded(everyone, join, running_state=True)

    def _advance(self) -> None:
        """One dispatch of the running batch."""
        steps, start = self._steps(), time.perf_counter()
        advance = partial(self._batch.advance, steps)
        results = self._guarded(self._batch.requests, advance, running_state=True)
        if results is None:
            return
        self._failures = 0
        done = max(len(tokens) for _, tokens, _, _ in results)
        self._counts["steps"] += done
        self._pace.measure(time.perf_counter() - start, done)
        for running, tokens, alive, ended in results:
            self._counts["completion"] += len(tokens)
            if running.add(tokens, alive=alive, ended=ended):
                self._batch.leave(running, alive=alive)
                self._forget(running)
            elif running.crosses:
                self._batch.leave(running, alive=alive)
                self._cross(running)

    def _steps(self) -> int:
        """The number of tokens after which requests may join or leave."""
        running = self._batch.requests
        if self._waiting and len(running) < self.settings.slots:
            return 1
        return self._pace.steps(stops=any(each.ticket.request.sampling.stop for each in running))

    def _guarded(
        self, requests: Sequence[Running], work: Callable[[], Any], *, running_state: bool = False
    ) -> Any:
        """Runs some work; an error ends the requests that it was for, and no other.

        With `running_state`, the state of the running batch is lost by an error.
        """
        try:
            return work()
        except Exception as error:
            message = str(error) if isinstance(error, ElvaError) else first_line(error)
            if not isinstance(error, ElvaError):
                _LOG.exception("%d requests end with an error", len(requests))
                self._failures += 1
            if running_state:
                self._batch.clear()
                self._prefixes.clear()
            for running in requests:
                if not running.ticket.done:
                    self._finish(running, "error", error=message)
            if self._failures >= MOST_FAILURES:
                raise
        return None

    def _drop_cancelled(self) -> None:
        for running in self._batch.requests:
            if running.ticket.cancelled:
                self._batch.leave(running, alive=True)
                self._finish(running, "cancelled")
        with self._changed:
            gone = self._waiting.take_cancelled()
        for running in gone:
            self._finish(running, "cancelled")

    def _finish(self, running: Running, reason: Any, *, error: str = "") -> None:
        running.finish(reason, error=error)
        self._forget(running)

    def _cross(self, running: Running) -> None:
        """Lets a request join again, with its prefix for the length that it has now."""
        self._release(running)
        with self._changed:
            self._waiting.add_again(running)

    def _forget(self, running: Running) -> None:
        """Counts the end of a request and gives up its prefix."""
        self._finished[running.ticket.result().finish_reason] += 1
        self._release(running)

    def _release(self, running: Running) -> None:
        if running.entry is not None:
            self._prefixes.release(running.entry)
        running.entry = None
