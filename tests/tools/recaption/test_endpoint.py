"""Tests of the endpoint engine against a server with all common kinds of failures."""

import base64
import email.utils
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from elva_jax.errors import ConfigError
from elva_jax.tools.recaption.endpoint import Endpoint
from elva_jax.utils.chat_client import Failed, Reply, Retry

from .conftest import CAPTION, Server, completion, send

FRAMES = [np.full((28, 56, 3), value, np.uint8) for value in (0, 90, 200)]


def engine(server, **settings):
    limits = dict(timeout=0.4, tries=3, back_off=0.01)
    limits |= {name: settings.pop(name) for name in (*limits, "total") if name in settings}
    return Endpoint(server.url, "qwen", retry=Retry(**limits), **settings)


def broken(handler, number, request):
    send(handler, 200, completion()[:30], length=500)


def silent(handler, number, request):
    time.sleep(1.0)


def trickle(handler, number, request):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(50):
        time.sleep(0.1)  # less than the limit of one read
        handler.wfile.write(b" ")
        handler.wfile.flush()


def close(handler, number, request):
    handler.connection.close()


def with_status(status):
    return lambda handler, number, request: send(handler, status, "not now")


def with_body(body):
    return lambda handler, number, request: send(handler, 200, body)


FAULTS = {
    "half a response": broken,
    "time-out": silent,
    "a byte at a time": trickle,
    "connection closed": close,
    "429": with_status(429),
    "500": with_status(500),
    "503": with_status(503),
    "invalid JSON": with_body("{'choices'"),
    "not UTF-8": with_body(b"\xff\xfe{"),
    "no choices": with_body('{"choices": []}'),
    "another object": with_body("[1, 2]"),
    "nothing": with_body(""),
    "a bomb": with_body("[" * 10**5),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_transient_failure_is_retried(server, fault):
    def first_fails(handler, number, request):
        fault(handler, number, request) if number == 0 else send(handler, 200, completion())

    server.answer = first_fails
    reply = engine(server).describe("image", FRAMES[:1], "?")
    assert reply == Reply(text=CAPTION, finish="stop", prompt_tokens=100, new_tokens=20)
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_persistent_failure_fails_the_request_after_all_tries(server, fault):
    server.answer = fault
    with pytest.raises(Failed, match=r"2 tries"):
        engine(server, tries=2).describe("image", FRAMES[:1], "?")
    assert len(server.requests) == 2


def test_endless_answer_fails_the_request(server, monkeypatch):
    monkeypatch.setattr("elva_jax.utils.chat_client.MAX_RESPONSE", 10)
    with pytest.raises(Failed, match=r"the answer exceeds 0 MiB \(2 tries\)"):
        engine(server, tries=2).describe("image", FRAMES[:1], "?")


def test_an_unreachable_server_fails_the_request(server):
    server.close()
    with pytest.raises(Failed, match="no connection"):
        engine(server).describe("image", FRAMES[:1], "?")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_rejected_request_is_not_retried(server, status):
    server.answer = lambda handler, number, request: send(handler, status, "the prompt is too long")
    with pytest.raises(Failed, match=f"HTTP {status}: the prompt is too long"):
        engine(server).describe("image", FRAMES[:1], "?")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_status_that_concerns_all_requests_ends_the_run(server, status):
    server.answer = with_status(status)
    with pytest.raises(ConfigError, match=f"HTTP {status}.*--endpoint"):
        engine(server).describe("image", FRAMES[:1], "?")
    assert len(server.requests) == 1


class Waits:
    """Replaces the engine's event; records the waits instead of waiting."""

    def __init__(self):
        self.seconds = []

    def wait(self, seconds):
        self.seconds.append(seconds)
        return False


def waits(server, answer, **settings):
    server.answer = answer
    asked = engine(server, **settings)
    asked._client._stopped = Waits()
    with pytest.raises(Failed):
        asked.describe("image", FRAMES[:1], "?")
    return asked._client._stopped.seconds


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("date", 18, 20), ("soon", 0, 0.01), ("-3", 0, 0.01), ("1e9", 600, 600)],
)
def test_retry_after_is_respected(server, header, least, most):
    if header == "date":
        header = email.utils.formatdate(time.time() + 20, usegmt=True)
    (wait,) = waits(
        server, lambda handler, *_: send(handler, 429, "", [("Retry-After", header)]), tries=2
    )
    assert least <= wait <= most


def test_backoff_doubles_with_jitter_up_to_a_minute(server):
    found = waits(server, with_status(500), back_off=2.0, tries=9)
    assert len(found) == 8
    for wait, whole in zip(found, [2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert whole / 2 <= wait <= whole
    assert len(set(found)) == 8


def test_no_try_begins_after_the_total_time(server):
    server.answer = lambda handler, *_: send(handler, 429, "", [("Retry-After", "500")])
    with pytest.raises(Failed, match=r"HTTP 429 \(1 tries within 30 s\)"):
        engine(server, total=30).describe("image", FRAMES[:1], "?")
    assert len(server.requests) == 1


def test_stopping_ends_waits(server):
    server.answer = lambda handler, *_: send(handler, 429, "", [("Retry-After", "500")])
    asked = engine(server)
    threading.Timer(0.1, asked.stop).start()
    with pytest.raises(Failed, match="interrupted"):
        asked.describe("image", FRAMES[:1], "?")


def pixels(url, head="data:image/jpeg;base64,"):
    assert url.startswith(head)
    parts = url.removeprefix(head).split(",")
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))) for part in parts]


def test_frames_are_sent_in_order_followed_by_the_prompt(server):
    engine(server, api_key="secret", max_new_tokens=77).describe("video", FRAMES, "What happens?")
    (request,), ((path, headers),) = server.requests, server.headers
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (request["model"], request["max_tokens"]) == ("qwen", 77)
    *media, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What happens?"}
    sent = [picture for part in media for picture in pixels(part["image_url"]["url"])]
    np.testing.assert_allclose(sent, FRAMES, atol=3)


def test_video_can_be_sent_as_a_file(server):
    engine(server, frames_as="video").describe("video", FRAMES, "?")
    media, _ = server.requests[0]["messages"][0]["content"]
    np.testing.assert_allclose(
        pixels(media["video_url"]["url"], "data:video/jpeg;base64,"), FRAMES, atol=3
    )


def test_text_that_utf8_cannot_encode_is_repaired(server):
    server.answer = with_body(
        '{"choices": [{"message": {"content": "a \\ud83d cat"}, "finish_reason": "stop"}]}'
    )
    assert engine(server).describe("image", FRAMES[:1], "?").text == "a ? cat"


def test_refusal_in_a_separate_field_is_recognized(server):
    server.answer = with_body(
        '{"choices": [{"message": {"content": null, "refusal": "No."}, "finish_reason": "stop"}]}'
    )
    reply = engine(server).describe("image", FRAMES[:1], "?")
    assert reply == Reply(text="No.", finish="content_filter", prompt_tokens=0, new_tokens=0)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "file:///etc/passwd", "http://"])
def test_an_invalid_address_is_refused(url):
    with pytest.raises(ConfigError, match="--endpoint"):
        Endpoint(url, "qwen")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(server, status):
    other = Server()
    try:
        server.answer = lambda handler, number, request: send(
            handler, status, "", [("Location", f"{other.url}/chat/completions")]
        )
        with pytest.raises(Failed, match=f"HTTP {status}"):
            engine(server, api_key="secret").describe("image", FRAMES[:1], "?")
        assert other.headers == []
    finally:
        other.close()


@pytest.mark.parametrize("status", [400, 401, 503])
def test_no_error_shows_a_secret(server, status):
    server.answer = lambda handler, number, request: send(
        handler, status, f"wrong: {handler.headers['Authorization']}"
    )
    url = server.url.replace("//", "//me:password@")
    made = Endpoint(url, "qwen", api_key="k-123", retry=Retry(tries=1, timeout=5))
    with pytest.raises((Failed, ConfigError)) as caught:
        made.describe("image", FRAMES[:1], "?")
    assert "k-123" not in f"{caught.value}{made!r}"
    assert "password" not in str(caught.value)


def test_unusable_addresses_and_keys_are_refused_without_showing_them():
    with pytest.raises(ConfigError, match="--endpoint=ftp://host") as caught:
        Endpoint("ftp://me:password@host", "qwen")
    assert "password" not in str(caught.value)
    for key in ("k-1\n", "k-\u00e9"):
        with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
            Endpoint("http://localhost", "qwen", api_key=key)
        assert "k-" not in str(caught.value)
