"""HTTP/1.1 with time limits for clients that send or read too slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from elva_jax.serving.problems import HttpError
from elva_jax.serving.settings import ServeSettings


def protocol(settings: ServeSettings) -> type[asyncio.Protocol]:
    """The protocol of one server's connections."""

    class Protocol(_TimedProtocol):
        header_seconds = settings.header_seconds
        write_seconds = settings.write_seconds

    return Protocol


class _TimedProtocol(H11Protocol):
    """Ends connections whose headers do not come, and those whose client reads nothing."""

    header_seconds: float
    write_seconds: float
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expects the headers of a request."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Expects the rest of headers that have begun."""
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE
        if not waits:
            self._stop(self._reading)
            self._reading = None
        elif self._reading is None and self.conn.trailing_data[0]:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the time limits."""
        self._stop(self._reading)
        self._stop(self._writing)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Expects the client to read."""
        super().pause_writing()
        self._writing = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Notices that it has."""
        self._stop(self._writing)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, in JSON as everything else."""
        body = json.dumps(HttpError(400, msg).body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of another response
            events = (response, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _expect_headers(self) -> None:
        self._reading = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
