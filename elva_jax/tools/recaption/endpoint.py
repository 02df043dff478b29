"""The engine behind an OpenAI-compatible endpoint, such as vLLM's."""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import random
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from elva_jax.errors import ConfigError
from elva_jax.tools.recaption.engine import Failed, Kind, Reply

JPEG_QUALITY = 92
MAX_WAIT = 60.0  # seconds that back-off grows to
MAX_RETRY_AFTER = 600.0  # seconds that a server may ask us to wait
MAX_RESPONSE = 16 << 20  # bytes
FATAL = (401, 403, 404, 405)  # a wrong key, address or model, whatever the request
TRANSIENT = (408, 409, 425, 429)


class _Again(Exception):
    """A try that failed in a way that may pass.

    Args:
      reason: in a few words.
      after: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


class Endpoint:
    """Asks `{url}/chat/completions`, with a picture or frames as JPEG data URLs.

    Args:
      url: up to and with the version, such as http://localhost:8000/v1.
      model: the name that the server knows it by.
      api_key: sent as a bearer token; "" for none.
      max_new_tokens: longest answer.
      timeout: seconds without a byte after which a try is given up.
      tries: of a request, at most.
      back_off: seconds before the second try; doubled with every further one, and drawn between a half and the whole of that.
      frames_as: a video as a series of images, which every server takes, or as one video in vLLM's form, of half as many tokens.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = "",
        max_new_tokens: int = 1024,
        timeout: float = 300.0,
        tries: int = 6,
        back_off: float = 1.0,
        frames_as: Literal["images", "video"] = "images",
    ):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigError(
                f"--endpoint={url}: must be an address such as http://localhost:8000/v1"
            )
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._max_new_tokens = max_new_tokens
        self._timeout = timeout
        self._tries = tries
        self._back_off = back_off
        self._frames_as = frames_as
        self._stopped = threading.Event()

    def describe(self, kind: Kind, frames: list[np.ndarray], prompt: str) -> Reply:
        """See `Engine.describe`; several tries are made where a failure may pass."""
        content = [*self._media(kind, frames), {"type": "text", "text": prompt}]
        request = {"model": self._model, "max_tokens": self._max_new_tokens, "temperature": 0.0}
        body = json.dumps(request | {"messages": [{"role": "user", "content": content}]}).encode()
        for attempt in range(1, self._tries + 1):
            try:
                return self._try(body)
            except _Again as again:
                if attempt == self._tries:
                    raise Failed(f"{again} ({attempt} tries)") from None
                wait = min(self._back_off * 2 ** (attempt - 1), MAX_WAIT) * random.uniform(0.5, 1.0)
                if self._stopped.wait(max(wait, again.after)):
                    raise Failed(f"{again} (interrupted)") from None
        raise AssertionError("unreachable: the last try returns or raises")

    def stop(self) -> None:
        """See `Engine.stop`."""
        self._stopped.set()

    def _media(self, kind: Kind, frames: list[np.ndarray]) -> list[dict[str, Any]]:
        pictures = [_jpeg(frame) for frame in frames]
        if kind == "video" and self._frames_as == "video":
            return [
                {
                    "type": "video_url",
                    "video_url": {"url": f"data:video/jpeg;base64,{','.join(pictures)}"},
                }
            ]
        return [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
            for picture in pictures
        ]

    def _try(self, body: bytes) -> Reply:
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                answer = response.read(MAX_RESPONSE)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status(error) from None
        except urllib.error.URLError as error:
            raise _Again(f"no connection ({error.reason})") from None
        except TimeoutError:
            raise _Again(f"no answer for {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"the answer broke off ({type(error).__name__})") from None
        return _reply(answer)

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means: _Again, Failed or ConfigError."""
        reason = f"HTTP {error.code}{_detail(error)}"
        if error.code in FATAL:
            return ConfigError(f"{self._url}: {reason}; check --endpoint, --model and the key")
        if error.code in TRANSIENT or error.code >= 500:
            return _Again(reason, _retry_after(error.headers.get("Retry-After")))
        return Failed(reason)


def _jpeg(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _detail(error: urllib.error.HTTPError) -> str:
    """The first words of an error's body."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    return f": {' '.join(text.split())[:200]}" if text.strip() else ""


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, as seconds or as a date; 0 where it says nothing."""
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


def _reply(answer: bytes) -> Reply:
    try:
        value = json.loads(answer)
        choice = value["choices"][0]
        text, usage = choice["message"].get("content"), value.get("usage") or {}
        refusal = choice["message"].get(
            "refusal"
        )  # a field of its own where the server tells it apart
        finish = "content_filter" if refusal else str(choice.get("finish_reason") or "stop")
        text = (
            str(text or refusal or "").encode(errors="replace").decode()
        )  # JSON can write half a surrogate pair, UTF-8 cannot
        return Reply(
            text,
            finish,
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Again(f"not a chat completion: {answer[:80]!r}") from None
