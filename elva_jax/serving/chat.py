"""`POST /v1/chat/completions`: a question, and its answer at once or piece by piece."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from elva_jax.inference.continuous.requests import Delta, Done, GenerationRequest, Stats
from elva_jax.inference.continuous.ticket import Event, Ticket
from elva_jax.serving.access import check_key
from elva_jax.serving.bodies import BodyReader
from elva_jax.serving.metrics import Metrics
from elva_jax.serving.problems import HttpError, as_http, busy, closing, internal
from elva_jax.serving.questions import Question, QuestionReader
from elva_jax.serving.replies import DONE, Reply, event
from elva_jax.serving.settings import ServeSettings

LINGER_SECONDS = 5.0  # that a refused body is read on, so that its client reads the answer
T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Engine(Protocol):
    """The engine that answers; see `inference.continuous.ContinuousEngine`."""

    def submit(self, request: GenerationRequest, /) -> Ticket:
        """Takes a request, from any thread; raises ServeError or LayoutError."""

    def stats(self) -> Stats:
        """Counters."""


class _GoneError(Exception):
    """The client has closed the connection."""


class ChatEndpoint:
    """The ASGI application of the path.

    Args:
      engine: answers.
      questions: reads bodies.
      settings: key and limits.
      metrics: counts.
    """

    def __init__(
        self, engine: Engine, questions: QuestionReader, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self._engine, self._questions = engine, questions
        self._settings, self._metrics = settings, metrics
        self._bodies = BodyReader(settings.max_body, settings.body_seconds)
        self._pool = ThreadPoolExecutor(settings.readers, thread_name_prefix="read")
        self._in_work = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; every way out cancels what it has begun."""
        self._in_work += 1
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
            self._metrics.responded(response.status_code)
            await response(scope, receive, send)
        except (_GoneError, ClientDisconnect):
            self._metrics.responded(499)  # nobody reads it; the number is nginx's
        finally:
            self._in_work -= 1

    def close(self) -> None:
        """Ends the threads that are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _respond(self, request: Request) -> Response:
        try:
            check_key(request, self._settings.api_key)
            if self.draining:
                raise closing()
            if self._in_work > self._settings.most_requests:
                raise busy("too many requests at once; try again later")
            loop = asyncio.get_running_loop()
            async with self._bodies.read(request) as content:
                reading = loop.run_in_executor(self._pool, self._questions.read, content)
                question = await _unless_gone(request, reading)
            del content
            self._metrics.read(question.read_seconds)
            return await self._answer(request, question)
        except (_GoneError, ClientDisconnect, asyncio.CancelledError):
            raise
        except Exception as error:
            problem = as_http(error)
            if problem is None:
                _LOG.exception("a request failed by a bug")
                problem = internal()
            return error_response(problem, request)

    async def _answer(self, request: Request, question: Question) -> Response:
        ticket = self._engine.submit(question.request)
        reply = Reply(question=question, name=uuid.uuid4().hex, created=int(time.time()))
        events = _Events(ticket)
        try:
            first = await _unless_gone(request, events.next())
            _raise_failure(first)
            if question.stream:
                return _EventStream(self._stream(reply, first, events), ticket)
            assert isinstance(first, Done)
        except BaseException:
            ticket.cancel()
            raise
        self._metrics.finished(first, merging=question.merging)
        return JSONResponse(reply.body(first))

    async def _stream(self, reply: Reply, found: Event, events: _Events) -> AsyncIterator[bytes]:
        yield event(reply.first())
        while isinstance(found, Delta):
            if found.text:
                yield event(reply.piece(found.text))
            found = await events.next()
        self._metrics.finished(found, merging=reply.question.merging)
        try:
            _raise_failure(found)
        except HttpError as error:
            yield event(error.body)
            return
        yield event(reply.last(found))
        if reply.question.usage:
            yield event(reply.usage(found))
        yield DONE


class _Events:
    """The events of a ticket, for one task of the running loop."""

    def __init__(self, ticket: Ticket) -> None:
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def put(found: Event) -> None:
            loop.call_soon_threadsafe(self._queue.put_nowait, found)

        ticket.subscribe(put)

    async def next(self) -> Event:
        """The next one."""
        return await self._queue.get()


class _EventStream(StreamingResponse):
    """A stream that cancels its ticket however it ends, also before its first byte."""

    def __init__(self, content: AsyncIterator[bytes], ticket: Ticket) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


class _Refusal(JSONResponse):
    """An error before the body has been read; what follows of it is thrown away for a while.

    A connection that is closed with unread data is reset, and its client may lose the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                message = await receive()
                while message["type"] == "http.request" and message.get("more_body"):
                    message = await receive()
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def error_response(problem: HttpError, request: Request) -> Response:
    """The response to a request that failed."""
    unread = request.method == "POST" and problem.status in (401, 408, 413, 415, 421, 429, 503)
    headers = problem.headers | ({"Connection": "close"} if unread else {})
    kind = _Refusal if unread else JSONResponse
    return kind(problem.body, problem.status, headers)


def _raise_failure(found: Event) -> None:
    """Raises the end of an answer that failed."""
    if isinstance(found, Done) and found.finish_reason == "error":
        raise HttpError(500, found.error or "the engine failed", code="internal_error")
    if isinstance(found, Done) and found.finish_reason == "cancelled":
        raise closing()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client closes the connection.

    Raises:
      _GoneError: it has.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _GoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _closed(request: Request) -> None:
    """Waits for the client to close the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
