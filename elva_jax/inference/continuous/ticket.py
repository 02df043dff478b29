"""The caller's end of a request: its events, for threads and for asyncio."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

from elva_jax.inference.continuous.requests import Delta, Done, GenerationRequest

Event = Delta | Done
_LOG = logging.getLogger(__name__)


class Ticket:
    """A submitted request. Every method may be called from any thread.

    Its events are `Delta`s and one last `Done`. They are kept, so several readers each get all.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self._events: list[Event] = []
        self._callbacks: list[Callable[[Event], None]] = []
        self._changed = threading.Condition()
        self._cancelled = False

    def __iter__(self) -> Iterator[Event]:
        """The events as they come; ends after `Done`."""
        seen = 0
        while True:
            with self._changed:
                while len(self._events) <= seen:
                    self._changed.wait()
                event = self._events[seen]
            seen += 1
            yield event
            if isinstance(event, Done):
                return

    def result(self, timeout: float | None = None) -> Done:
        """Waits for the end of the request.

        Raises:
          TimeoutError: it has not ended within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the request has not ended within {timeout} s")
            last = self._events[-1]
        assert isinstance(last, Done)
        return last

    @property
    def done(self) -> bool:
        """Whether `Done` has come."""
        return bool(self._events) and isinstance(self._events[-1], Done)

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Calls `callback` with every event in order, the past ones at once.

        Later ones come from the engine's thread, which the callback must not hold up: asyncio code
        passes `lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)`.
        """
        with self._changed:
            for event in self._events:
                callback(event)
            self._callbacks.append(callback)

    def cancel(self) -> None:
        """Asks for the end of the request at the next token boundary; `Done` comes all the same."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._cancelled

    def emit(self, event: Event) -> None:
        """Adds an event; only the engine calls this."""
        with self._changed:
            self._events.append(event)
            for callback in tuple(self._callbacks):
                try:
                    callback(event)
                except Exception as error:
                    # A reader that is gone, such as a closed event loop, must not end the engine.
                    _LOG.warning("a reader of a request failed (%s); it is cancelled", error)
                    self._callbacks.remove(callback)
                    self._cancelled = True
            self._changed.notify_all()
