"""Clients that are wrong, rude or gone: a clear 4xx, nothing leaked, and the server lives on."""

import contextlib
import json
import threading
import time

import httpx
import pytest

from elva_jax.inference.continuous.ticket import Ticket
from elva_jax.serving import access, problems
from elva_jax.serving.server import Server, bind

CHAT = "chat/completions"
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def nothing_leaks(http, media, capfd, caplog):
    """After every test the server answers, and neither key, traces nor other paths were shown."""
    yield
    assert http.get("models").status_code == 200
    shown = capfd.readouterr()
    shown = f"{shown.out}{shown.err}{caplog.text}"
    for word in ("sk-of-the-tests", "Traceback", "secret"):
        assert word not in shown


def refused(response, status, words, media):
    error = response.json()["error"]
    assert (response.status_code, {*error}) == (status, {"message", "type", "param", "code"}), error
    assert words in error["message"]
    assert len(error["message"]) <= problems.MOST_LETTERS
    assert "\n" not in error["message"]
    for word in (str(media.parent), "Traceback", "sk-of-the-tests", "root:x:"):
        assert word not in response.text


BODIES = {
    "no JSON": (b"{", 400, "not JSON"),
    "no object": (b"[1]", 400, "no JSON object"),
    "empty": (b"", 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "nested deeper"),
    "deep values": (b'{"a":' * 900 + b"1" + b"}" * 900, 400, "nested deeper"),
    "a key twice": (b'{"messages": [], "messages": []}', 400, "twice"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "UTF-8"),
    "NaN": (b'{"temperature": NaN}', 400, "finite"),
    "a huge number": (b'{"max_tokens": 1' + b"0" * 5000 + b"}", 400, ""),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(http, media, name):
    body, status, words = BODIES[name]
    refused(http.post(CHAT, content=body), status, words, media)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::", "", "a b"])
def test_other_names_of_the_server(http, media, host):
    """As a web page sends that has rebound its name to this machine."""
    for method, path in (("GET", "models"), ("POST", CHAT), ("GET", "no/such")):
        response = http.request(method, path, headers={"Host": host}, content=b"{}")
        if host in ("", "a b"):  # refused by the HTTP parser
            assert response.status_code in (400, 421)
        else:
            refused(response, 421, "--allowed-host", media)


def test_names_of_the_server():
    loopback = {"localhost", "127.0.0.1", "::1"}
    assert access.host_names("127.0.0.1", ()) == access.host_names("::1", ()) == loopback
    assert access.host_names("127.0.0.1", ("Elva.Lan",)) == loopback | {"elva.lan"}
    assert access.host_names("0.0.0.0", ("elva.lan",)) == loopback | {"0.0.0.0", "elva.lan"}
    assert not access.host_names("0.0.0.0", ())
    assert not access.host_names("127.0.0.1", ("*",))


SETTINGS = {
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "at least one"),
    "a wrong role": ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
    "a lone surrogate": ({"messages": [{"role": "user", "content": "\ud800"}]}, "Unicode"),
    "an empty question": ({"messages": [{"role": "user", "content": " "}]}, "no text"),
    "two answers": ({"n": 2}, "n: 2"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "top_logprobs": ({"top_logprobs": 3}, "top_logprobs"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "a cold temperature": ({"temperature": -1}, "temperature"),
    "words for numbers": ({"top_p": "high"}, "top_p"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "a long seed": ({"seed": 2**70}, "seed"),
    "a stop that is none": ({"stop": 3}, "stop"),
    "a stream that is none": ({"stream": "yes"}, "stream"),
    "options of no stream": ({"stream_options": {"include_usage": True}}, "needs stream"),
    "merging by halves": ({"merging": 0.5}, "merging"),
    "no policy": ({"policy": "best"}, "policy"),
    "a policy of no text": ({"policy": 3}, "policy"),
    "too many frames": ({"high_frames": 4000, "low_frames": 4000}, "frames"),
    "too large frames": ({"high_frames": 9, "high_edge": 65536}, "MiB"),
    "frames twice": ({"frames": 2, "high_frames": 2}, "frames"),
    "too long a text": ({"messages": [{"role": "user", "content": "a" * 900_000}]}, "characters"),
    "a long text": ({"messages": [{"role": "user", "content": "What? " * 500}]}, "tokens"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(http, media, ask, name):
    given, words = SETTINGS[name]
    body = ask(("video_url", "red.mp4"), "What moves?", max_tokens=1) | given
    refused(http.post(CHAT, content=json.dumps(body)), 400, words, media)


MEDIA = {
    "another folder": "/etc/passwd",
    "a file URL of another folder": "file:///etc/passwd",
    "up": "../secret.mp4",
    "up, escaped": "file:%2e%2e/secret.mp4",
    "a link to a file": "link.mp4",
    "a link to a folder": "above/secret.mp4",
    "NUL": "red.mp4\0.png",
    "another host": "file://example.org/red.mp4",
    "missing": "gone.mp4",
    "no video": "broken.mp4",
    "a URL": "http://127.0.0.1/a.mp4",
    "another scheme": "gopher://127.0.0.1/a.mp4",
    "no base64": "data:video/mp4;base64,!!!!",
    "no video in base64": "data:video/mp4;base64,AAAA",
    "nothing in base64": "data:video/mp4;base64,",
    "text": "data:text/html,<script>",
    "no name": "",
    "no text": 3,
    "a long name": "a" * 5000,
    "a shell": "red.mp4; cat /etc/passwd",
    "a home": "~root/a.mp4",
}


@pytest.mark.parametrize("name", MEDIA)
def test_media(http, media, name):
    url = {"type": "video_url", "video_url": {"url": MEDIA[name]}}
    parts = [url, {"type": "text", "text": "What moves?"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    refused(http.post(CHAT, json=body), 400, "", media)


def test_too_many_media(http, media, ask):
    body = ask(*[("image_url", "red.mp4")] * 200, "What?")
    refused(http.post(CHAT, json=body), 400, "more than 128", media)


def test_headers_and_paths(server, http, media, ask):
    body = ask("What moves?", max_tokens=1)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = http.post(CHAT, content=json.dumps(body), headers={"Content-Type": kind})
        refused(response, 415, "Content-Type", media)
    response = http.post(CHAT, json=body, headers={"Content-Encoding": "gzip"})
    refused(response, 415, "Content-Encoding", media)
    for key in ("", "Bearer", "Bearer wrong", "Basic sk-of-the-tests", b"Bearer \xff"):
        for path in ("models", CHAT):
            send = http.get if path == "models" else http.post
            refused(send(path, headers={"Authorization": key}), 401, "API key", media)
    refused(http.get(CHAT), 405, "GET", media)
    refused(http.get("../v1/../../etc/passwd"), 404, "no such path", media)
    refused(http.post(CHAT, json=body | {"model": "x\n\x1b[31m"}), 404, "no model x", media)


def test_keys_are_compared_in_constant_time(monkeypatch):
    seen = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda *given: seen.append(given) or True)
    request = type("Request", (), {"headers": {"authorization": "Bearer abc"}})()
    access.check_key(request, "key")
    assert seen == [(b"abc", b"key")]


def test_large_bodies_are_not_read(http, raw, media):
    """A gigabyte by its announcement, and one in chunks without."""
    head = f"POST /v1/{CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Authorization: Bearer sk-of-the-tests\r\n"
    announced = raw()
    announced.sendall(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
    assert announced.recv(20).startswith(b"HTTP/1.1 413")

    def chunks():
        for _ in range(1024):
            yield bytes(2**20)

    response = http.post(CHAT, content=chunks())
    refused(response, 413, "--max-body", media)
    negative = raw()
    negative.sendall(f"{head}Content-Length: -5\r\n\r\n".encode())
    assert negative.recv(20).startswith(b"HTTP/1.1 400")


def test_half_requests_end(raw):
    """Half a head, half a body, and nothing at all; the limits of the tests are one second."""
    head = f"POST /v1/{CHAT} HTTP/1.1\r\nHost: localhost\r\n"
    head += "Authorization: Bearer sk-of-the-tests\r\n"
    body = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    silent, headless, bodiless, garbage = raw(), raw(), raw(), raw()
    headless.sendall(head.encode())
    bodiless.sendall(f"{head}{body}".encode())
    garbage.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
    assert garbage.makefile("rb").read().endswith(b"}}")
    assert bodiless.recv(20).startswith(b"HTTP/1.1 408")
    for each in (silent, headless):
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(1) == b""


def test_clients_that_leave(server, engine, raw, ask):
    """Before their answer begins, within a stream, and while their request is sent."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/json\r\nAuthorization: Bearer sk-of-the-tests\r\n"
    before = engine.stats().finished.get("cancelled", 0)
    for stream in (False, True) * 3:
        body = json.dumps(ask("What moves?", max_tokens=32, stream=stream))
        gone = raw()
        gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        if stream:
            assert gone.recv(20).startswith(b"HTTP/1.1 200")
        gone.close()
    half = raw()
    half.sendall(f"{head}Content-Length: 999\r\n\r\n{{".encode())
    half.close()
    end = time.monotonic() + 30
    while engine.stats().running + engine.stats().queued and time.monotonic() < end:
        time.sleep(0.01)
    stats = engine.stats()
    assert stats.running == stats.queued == 0
    assert stats.finished.get("cancelled", 0) >= before


class Held:
    """An engine that answers nothing."""

    def __init__(self, engine):
        self._engine, self.tickets = engine, []

    def submit(self, request):

        self.tickets.append(Ticket(request))
        return self.tickets[-1]

    def stats(self):
        return self._engine.stats()


@pytest.fixture
def slow(model, engine, limits):
    """A server whose engine holds every request, and its URL."""
    held = Held(engine)
    settings = limits(most_requests=2, drain_seconds=0.2)
    with Server(model, held, settings, bind("127.0.0.1", 0)) as server:
        yield held, server


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_server_says_so_and_a_gone_clients_work_is_cancelled(slow, ask, media):
    held, server = slow
    headers = {"Authorization": "Bearer sk-of-the-tests"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=0.6) as client:
        body = ask("What moves?")

        def leave(stream):
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=body | {"stream": stream})

        waiting = [threading.Thread(target=leave, args=(stream,)) for stream in (False, True)]
        for each in waiting:
            each.start()
        wait_for(lambda: len(held.tickets) == 2)
        full = client.post(CHAT, json=body)
        refused(full, 429, "too many requests", media)
        assert int(full.headers["Retry-After"]) >= 1
        assert not any(ticket.cancelled for ticket in held.tickets)
        for each in waiting:
            each.join()
        wait_for(lambda: all(ticket.cancelled for ticket in held.tickets))
