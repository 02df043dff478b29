"""Fixtures: a manifest of small images, and a server with programmable answers."""

import http.server
import json
import threading

import numpy as np
import pytest
from PIL import Image

CAPTION = "A small square of coloured noise fills the whole picture, with no object to be seen."


def completion(text=CAPTION, finish="stop"):
    """The body of a normal response."""
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return json.dumps(
        {
            "choices": [
                {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
            ],
            "usage": usage,
        }
    )


class Server:
    """Calls `answer(handler, number, request)` for requests from number 0; records all requests."""

    def __init__(self):
        self.answer = lambda handler, number, request: send(handler, 200, completion())
        self.requests, self.headers = [], []
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler):
                request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    number = len(self.requests)
                    self.requests.append(request)
                    self.headers.append((handler.path, handler.headers))
                self.answer(handler, number, request)

            def log_message(handler, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # the client closed the connection
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def send(handler, status, body, headers=(), length=None):
    """Sends a response; with a `length` above that of the body it is incomplete."""
    data = body.encode() if isinstance(body, str) else body
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(length or len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def manifest(tmp_path):
    """Returns a function that writes manifest.jsonl for `count` images and `more` lines."""

    def build(count, more=()):
        rng = np.random.default_rng(0)
        lines = [{"id": f"i{k}", "image": f"pictures/{k}.png"} for k in range(count)]
        (tmp_path / "pictures").mkdir()
        for k, line in enumerate(lines):
            pixels = rng.integers(0, 256, (30 + k, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / line["image"])
        path = tmp_path / "manifest.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
        return path

    return build


def read_lines(path):
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
