"""One real server for all tests: a tiny model, its engine, and clients over sockets."""

import base64
import socket

import httpx
import openai
import pytest

from elva_jax import MergeLayer, Merging, testing
from elva_jax.inference.continuous.engine import ContinuousEngine
from elva_jax.inference.continuous.requests import EngineSettings
from elva_jax.serving.server import Server, bind
from elva_jax.serving.settings import ServeSettings

KEY = "sk-of-the-tests"
# They merge less than the model's own layers do, and one has another number of layers.
PROFILES = {
    "half": Merging((MergeLayer(1, "ratio", ratio=0.8), MergeLayer(2, "ratio", ratio=0.5))),
    "late": Merging((MergeLayer(2, "ratio", ratio=0.9),)),
}
NAMED = (
    "half=merge_policies=ratio;merge_ratios=0.8,0.5",
    "late=merge_layers=2;merge_policies=ratio;merge_ratios=.9;merge_thresholds=1",
)
# One length of a prefix, so that few programs are compiled.
SETTINGS = EngineSettings(
    slots=4, queue=64, joins=2, context=128, smallest=128, question=64, max_new_tokens=32
)


@pytest.fixture(scope="session")
def model():
    made = testing.tiny_model()
    made.add_merging_profiles(*NAMED)
    return made


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A folder of media with ways out of it, and a secret beside it."""
    above = tmp_path_factory.mktemp("serve")
    folder = above / "media"
    folder.mkdir()
    for color in ("red", "blue"):
        testing.write_video(folder / f"{color}.mp4", testing.tiny_video(8, color=color))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    testing.write_video(above / "secret.mp4", testing.tiny_video(4))
    (folder / "link.mp4").symlink_to(above / "secret.mp4")
    (folder / "above").symlink_to(above)
    return folder


@pytest.fixture(scope="session")
def engine(model):
    with ContinuousEngine(model, SETTINGS) as made:
        yield made


def settings(media, **more):
    """Those of the tests' servers."""
    fields = {"api_key": KEY, "media_dir": media, "max_new_tokens": 32, "max_prompt_tokens": 192}
    fields |= {"max_body": 2**20, "header_seconds": 1.0, "body_seconds": 1.0}
    return ServeSettings(**(fields | more))


@pytest.fixture(scope="session")
def server(model, engine, media):
    with Server(model, engine, settings(media), bind("127.0.0.1", 0)) as started:
        yield started


@pytest.fixture(scope="session")
def profiles():
    return PROFILES


@pytest.fixture
def client(server):
    """OpenAI's client."""
    with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def http(server):
    """Bare requests; `raw` opens a socket."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as made:
        yield made


@pytest.fixture
def raw(server):
    """Opens sockets to the server."""
    opened = []

    def connect():
        url = httpx.URL(server.url)
        opened.append(socket.create_connection((url.host, url.port), timeout=30))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def ask():
    """Makes the body of a request with one message, of texts and media by their type and URL."""

    def make(*parts, **more):
        content = []
        for each in parts:
            if isinstance(each, str):
                content.append({"type": "text", "text": each})
            else:
                kind, url = each
                content.append({"type": kind, kind: {"url": str(url)}})
        return {"model": "elva", "messages": [{"role": "user", "content": content}], **more}

    return make


@pytest.fixture
def inline(media):
    """A file of the folder as a data: URL."""

    def make(name, kind="video/mp4"):
        return f"data:{kind};base64,{base64.b64encode((media / name).read_bytes()).decode()}"

    return make


@pytest.fixture
def limits(media):
    """Makes settings of a server of one's own."""
    return lambda **more: settings(media, **more)
