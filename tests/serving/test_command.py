"""`elva serve` from its start to its last answer."""

import json
import os
import re
import shlex
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

import elva_jax
from elva_jax import cli

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
HALF = "half=merge_policies=ratio;merge_ratios=0.5"
LIMITS = "--port 0 --slots 4 --context 128 --question 64 --max-new-tokens 32 --warm-up off"


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.save_pretrained(folder)
    return str(folder)


def serve(checkpoint, capfd, visit, *options):
    """Runs the command in this thread while `visit` is a client in another one; it gets the URL."""
    failed = []

    def client():
        shown, end = "", time.monotonic() + 60
        while not (found := re.search(r"http\S+/v1", shown)) and time.monotonic() < end:
            time.sleep(0.02)
            shown += capfd.readouterr().out
        try:
            visit(found[0])
        except BaseException as error:
            failed.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    status = cli.main(["serve", "--checkpoint", checkpoint, *shlex.split(LIMITS), *options])
    thread.join()
    assert not failed
    return status


def test_sigterm_lets_running_requests_finish(checkpoint, capfd, model, media, ask, monkeypatch):
    monkeypatch.setenv("ELVA_API_KEY", "from the environment")
    expected = model.answer(media / "red.mp4", "What moves?", max_new_tokens=32)
    said = []

    def visit(url):
        headers = {"Authorization": "Bearer from the environment"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            body = ask(("video_url", "red.mp4"), "What moves?", stream=True, model="film")
            with client.stream("POST", "chat/completions", json=body) as response:
                os.kill(os.getpid(), signal.SIGTERM)
                text = response.read().decode()
            *events, end, _ = text.split("\n\n")
            assert end == "data: [DONE]"
            chunks = [json.loads(event.removeprefix("data: ")) for event in events]
            said.extend(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    options = ["--media-dir", str(media), "--served-model-name", "film"]
    assert serve(checkpoint, capfd, visit, *options) == 0
    assert "".join(said) == expected


def test_an_answer_is_that_of_the_model_with_the_same_options(checkpoint, capfd, media, ask):
    """A drawn one, which depends on every logit."""
    model = elva_jax.load(checkpoint, weights="int8", prefill_chunk=32)
    model.add_merging_profiles(HALF)
    sampling = elva_jax.Sampling(temperature=1.5, seed=7)
    expected = model.answer(
        media / "red.mp4", "What moves?", max_new_tokens=8, merging="half", sampling=sampling
    )

    def visit(url):
        more = {"max_tokens": 8, "merging": "half", "temperature": 1.5, "seed": 7}
        body = ask(("video_url", "red.mp4"), "What moves?", **more)
        reply = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
        assert reply["choices"][0]["message"]["content"] == expected
        os.kill(os.getpid(), signal.SIGTERM)

    options = ["--media-dir", str(media), "--weights", "int8", "--prefill-chunk", "32"]
    assert serve(checkpoint, capfd, visit, *options, "--merging-profile", HALF) == 0


def test_requests_are_cut_off_after_the_drain_timeout(checkpoint, capfd, raw):
    """A body that does not end within it."""

    def visit(url):
        found = httpx.URL(url)
        with socket.create_connection((found.host, found.port)) as client:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)
            client.recv(10)

    assert serve(checkpoint, capfd, visit, "--drain-timeout", "0.3") == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--media-dir missing", "no such folder"),
        ("--api-key ü", "ASCII"),
        ("--host 203.0.113.1", "203.0.113.1"),
        ("--host no.such.host.invalid", "no address"),
        ("--served-model-name ''", "name"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(capsys, options, words):
    line = ["serve", "--checkpoint", "none", "--port", "0", *shlex.split(options)]
    assert cli.main(line) == 2
    assert words in capsys.readouterr().err


def test_a_port_in_use(server, capsys):
    port = str(httpx.URL(server.url).port)
    assert cli.main(["serve", "--checkpoint", "none", "--port", port]) == 2
    assert "choose another port" in capsys.readouterr().err


def commands():
    """The `elva` commands in the guide's blocks of shell."""
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line[line.index("elva ") :] for line in lines if re.match(r"(\w+=\S+ )?elva ", line)]


def test_the_commands_of_the_guide_exist():
    assert len(commands()) >= 4
    for line in commands():
        words = shlex.split(line, comments=True)[1:]
        assert cli._parser(words[0]).parse_known_args(words)[1] == [], line
