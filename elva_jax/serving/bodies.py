"""Bodies of requests: JSON of bounded size, read within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from elva_jax.serving.problems import HttpError, busy

BODIES = 16  # largest bodies that are in memory together


class BodyReader:
    """Reads bodies; those in memory are bounded one by one and together.

    Args:
      most: bytes of one body.
      seconds: for reading one.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as held until the block ends.

        Raises:
          HttpError: another content type, too many bytes, or too slow a client.
          ClientDisconnect: the client has closed the connection.
        """
        _check_type(request)
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._most:
            raise self._too_large()
        content = bytearray()
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        self._take(chunk, content)
            except TimeoutError:
                text = f"the request did not arrive within {self._seconds:g} s"
                raise HttpError(408, text, code="timeout") from None
            yield bytes(content)
        finally:
            self._held -= len(content)

    def _take(self, chunk: bytes, content: bytearray) -> None:
        if len(content) + len(chunk) > self._most:
            raise self._too_large()
        if self._held + len(chunk) > BODIES * self._most:
            raise busy("too many large requests at once; try again later")
        content += chunk
        self._held += len(chunk)

    def _too_large(self) -> HttpError:
        text = f"the request has more than {self._most:,} bytes; send less, or raise --max-body"
        return HttpError(413, text, code="too_large")


def _check_type(request: Request) -> None:
    """Refuses bodies that a foreign web page could send without asking first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "send JSON with the header Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "compressed requests are not read; leave out Content-Encoding")
