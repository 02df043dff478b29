"""Errors as clients see them: a status, and one line of JSON without paths or traces of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elva_jax.errors import (
    ClosedError,
    ConfigError,
    DataError,
    ElvaError,
    LayoutError,
    QueueFullError,
    RequestError,
    VideoError,
    printable,
)

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_SECONDS = 1
MOST_LETTERS = 500  # of a message


class HttpError(Exception):
    """A request that ends with an error status.

    Args:
      status: of HTTP.
      message: one line for the client's user.
      param: the key of the body that is wrong.
      code: a word for programs.
      headers: more of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = printable(message)[:MOST_LETTERS]
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response, or of an event in a stream."""
        kind = SERVER if self.status >= 500 else INVALID
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def busy(message: str) -> HttpError:
    """The answer to a request for which there is no room now."""
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return HttpError(429, message, code="rate_limit_exceeded", headers=headers)


def closing() -> HttpError:
    """The answer to a request that comes while the server ends."""
    headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
    return HttpError(503, "the server is shutting down", code="shutting_down", headers=headers)


def as_http(error: BaseException) -> HttpError | None:
    """The response to an error of a request; None: it is a bug of ours."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, QueueFullError):
        return busy("too many requests are waiting; try again later")
    if isinstance(error, ClosedError):
        return closing()
    if isinstance(error, RequestError):
        return HttpError(400, str(error), param=error.name, code="invalid_value")
    if isinstance(error, VideoError):
        return HttpError(400, str(error), param="messages", code="invalid_media")
    if isinstance(error, LayoutError):
        return HttpError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, DataError):
        return HttpError(400, str(error), param="messages", code="invalid_value")
    if isinstance(error, ConfigError):
        return HttpError(400, str(error), code="invalid_value")
    if isinstance(error, ElvaError):
        return HttpError(500, str(error), code="internal_error")
    if isinstance(error, MemoryError):
        return HttpError(503, "the server has not enough memory now; ask for less", code="memory")
    return None


def internal() -> HttpError:
    """The answer to a request that meets a bug; what happened stands in the server's log."""
    return HttpError(500, "the server failed; its log says why", code="internal_error")
