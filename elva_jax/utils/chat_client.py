"""A client of OpenAI-compatible endpoints such as vLLM's: messages in, an answer out.

Tries again what may pass, within limits of tries and of time. The key goes to its own host alone,
and no error shows it.
"""

from __future__ import annotations

import dataclasses
import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from elva_jax.errors import ConfigError, ElvaError
from elva_jax.utils.read import parse_json
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit

MAX_BACK_OFF = 60.0  # seconds
MAX_RETRY_AFTER = 600.0  # seconds; longest wait that a server may ask for
MAX_RESPONSE = 16 << 20  # bytes
FATAL = (401, 403, 404, 405)  # a wrong key, address or model fails every request
TRANSIENT = (408, 409, 425, 429)


class _Retryable(Exception):
    """A try that failed for a reason that may pass.

    Args:
      reason: in a few words.
      retry_after: seconds that the server asks the client to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer as the model gave it."""

    text: str
    finish: str  # "stop"; "length" if the limit of new tokens cut it off; "content_filter"
    prompt_tokens: int  # 0 if it is not reported
    new_tokens: int


class Failed(ElvaError):
    """A request without an answer; a later one may get it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """How long and how often a request is tried.

    Attributes:
      timeout: seconds after which a try is given up.
      tries: most tries per request.
      back_off: seconds before the second try. The wait doubles with every further try, and is drawn
        uniformly between half of that and all of it.
      total: seconds after which no further try begins.
    """

    timeout: float = 300.0
    tries: int = 6
    back_off: float = 1.0
    total: float = float("inf")


class ChatClient:
    """Posts to `{url}/chat/completions`; called from several threads at once.

    Args:
      url: address including the version, such as http://localhost:8000/v1.
      model: the name under which the server knows the model.
      api_key: sent as a bearer token; "" for none.
      max_new_tokens: longest answer.
      retry: how long and how often a request is tried.
      options: the options of the command line that gave `url` and `model`, for messages.

    Raises:
      ConfigError: the address is none, or the key cannot be sent.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = "",
        max_new_tokens: int = 1024,
        retry: Retry | None = None,
        options: tuple[str, str] = ("--endpoint", "--model"),
    ):
        self._options, self._retry = options, retry or Retry()
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigError(
                f"{options[0]}={without_password(url)}: "
                "must be an address such as http://localhost:8000/v1"
            )
        if not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("OPENAI_API_KEY: contains a character that no HTTP header may have")
        self._api_key = api_key
        # JSON may write any character with a backslash before it, or as \uXXXX.
        letters = (rf"\\?(?:{re.escape(c)}|u(?i:{ord(c):04x}))" for c in api_key)
        self._key_as_sent = re.compile("".join(letters))
        self._url = url.rstrip("/") + "/chat/completions"
        self._request = {"model": model, "max_tokens": max_new_tokens, "temperature": 0.0}
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            headers=headers | {"Content-Type": "application/json"},
            timeout=self._retry.timeout,
            follow_redirects=False,  # the key is for this host alone
            # A request takes seconds: no connection is worth keeping for the next one.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._stopped = threading.Event()

    def complete(self, messages: Sequence[Mapping[str, Any]]) -> Reply:
        """The answer to a chat; failures that may pass are tried again.

        Raises:
          Failed: this request got no answer.
          ConfigError: no request can succeed, for example with a wrong key or model.
        """
        body = json.dumps(self._request | {"messages": messages}).encode()
        start, attempt = time.monotonic(), 1
        while True:
            try:
                return self._post(body)
            except _Retryable as failure:
                if attempt == self._retry.tries:
                    raise Failed(f"{failure} ({attempt} tries)") from None
                longest = min(self._retry.back_off * 2 ** (attempt - 1), MAX_BACK_OFF)
                wait = max(longest * random.uniform(0.5, 1.0), failure.retry_after)
                if time.monotonic() - start + wait > self._retry.total:
                    limit = f"{self._retry.total:g} s"
                    raise Failed(f"{failure} ({attempt} tries within {limit})") from None
                if self._stopped.wait(wait):
                    raise Failed(f"{failure} (interrupted)") from None
            attempt += 1

    def stop(self) -> None:
        """Ends the waiting between tries, in all threads."""
        self._stopped.set()

    def _post(self, body: bytes) -> Reply:
        try:  # httpx limits each read, so a peer that sends a byte at a time needs a limit of all
            return run_with_time_limit(self._retry.timeout, lambda: self._exchange(body))
        except TimeLimitExceeded:
            raise _Retryable(f"no answer for {self._retry.timeout:g} s") from None

    def _exchange(self, body: bytes) -> Reply:
        try:
            with self._client.stream("POST", self._url, content=body) as response:
                answer = bytearray()
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > MAX_RESPONSE:
                        raise _Retryable(f"the answer exceeds {MAX_RESPONSE >> 20} MiB")
        except httpx.ConnectError as error:
            raise _Retryable(f"no connection ({error})") from None
        except httpx.TimeoutException:
            raise _Retryable(f"no answer for {self._retry.timeout:g} s") from None
        except httpx.RequestError as error:
            raise _Retryable(f"the answer broke off ({type(error).__name__})") from None
        if not response.is_success:
            raise self._status_error(response, bytes(answer))
        reply = _reply(self._hide_key(answer.decode(errors="replace")))
        return dataclasses.replace(reply, text=self._hide_key(reply.text))

    def _hide_key(self, text: str) -> str:
        """A server's text without the key, which some servers repeat."""
        return self._key_as_sent.sub("***", text) if self._api_key else text

    def _status_error(self, response: httpx.Response, body: bytes) -> Exception:
        """The exception for an HTTP status: _Retryable, Failed or ConfigError."""
        status = response.status_code
        detail = " ".join(self._hide_key(body.decode(errors="replace")).split())
        reason = f"HTTP {status}: {detail[:200]}" if detail else f"HTTP {status}"
        if status in FATAL:
            address, model = self._options
            return ConfigError(
                f"{without_password(self._url)}: {reason}; check {address}, {model} and the key"
            )
        if status in TRANSIENT or status >= 500:
            return _Retryable(reason, _retry_after(response.headers.get("Retry-After")))
        return Failed(reason)


def without_password(url: str) -> str:
    """An address without a name and password in it."""
    return re.sub(r"^([^/]*//)?[^/]*@", r"\1", url)


def _retry_after(value: str | None) -> float:
    """The seconds of a Retry-After header, which holds seconds or a date; 0 if it is unusable."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _reply(answer: str) -> Reply:
    try:
        value = parse_json(answer)
        choice = value["choices"][0]
        usage = value.get("usage") or {}
        refusal = choice["message"].get("refusal")  # some servers keep it apart from the content
        text = str(choice["message"].get("content") or refusal or "")
        return Reply(
            # JSON can hold half of a surrogate pair, UTF-8 cannot.
            text=text.encode(errors="replace").decode(),
            finish="content_filter" if refusal else str(choice.get("finish_reason") or "stop"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            new_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Retryable(f"not a chat completion: {answer[:80]!r}") from None
