"""Downloads reach public addresses only; real servers on this machine stand for the others."""

import http.server
import threading

import pytest

from elva_jax import testing
from elva_jax.errors import RecordError, VideoError
from elva_jax.serving import urls
from elva_jax.serving.media import MediaReader
from elva_jax.serving.settings import ServeSettings
from elva_jax.serving.urls import download, is_public

PRIVATE = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
    *("::127.0.0.1", "64:ff9b:1::7f00:1", "no address", ""),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


class Site(http.server.BaseHTTPRequestHandler):
    """Files, redirects, and a file without end."""

    def do_GET(self):
        status, location, body = 200, "", b"content"
        if self.path == "/to-file":
            status, location = 302, "/file"
        elif self.path == "/to-private":
            status, location = 302, f"http://127.0.0.2:{self.server.server_port}/file"
        elif self.path == "/loop":
            status, location = 307, "/loop"
        elif self.path == "/gone":
            status = 404
        elif self.path == "/to-disk":
            status, location = 302, "file:///etc/passwd"
        elif self.path == "/large":
            body = bytes(5000)
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        if self.path != "/slow":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/slow":
            self.server.asked.wait(20)
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("", 0), Site)
    server.asked = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.asked.set()
    server.shutdown()
    server.server_close()


def get(site, path, host="127.0.0.1", seconds=10.0):
    url = f"http://{host}:{site.server_port}{path}"
    allowed = "127.0.0.1".__eq__
    return download(url, most=4096, seconds=seconds, name="it", allowed=allowed)


def test_downloads_and_redirects(site):
    assert get(site, "/file") == get(site, "/to-file") == get(site, "/file#part") == b"content"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/to-private", "its address is not public"),
        ("/loop", "redirects"),
        ("/gone", "404"),
        ("/to-disk", "not one of http"),
        ("/large", "more than"),
    ],
)
def test_what_is_refused(site, path, words):
    with pytest.raises(VideoError, match=words):
        get(site, path)


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "0x7f000002", "127.2"])
def test_every_spelling_of_an_address_is_resolved(site, host):
    with pytest.raises(VideoError, match="not public"):
        get(site, "/file", host)


def test_a_name_with_one_private_address_is_refused(site, monkeypatch):
    """The address that is connected to is the one that was checked."""
    asked = []

    def resolve(host, port, **_):
        asked.append(host)
        found = ["127.0.0.1", "10.0.0.1"] if host == "mixed.test" else ["127.0.0.1"]
        return [(2, 1, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(urls.socket, "getaddrinfo", resolve)
    with pytest.raises(VideoError, match="not public"):
        get(site, "/file", "mixed.test")
    assert asked == ["mixed.test"]


def test_a_slow_site(site):
    with pytest.raises(VideoError, match=r"longer than 0\.2 s"):
        get(site, "/slow", seconds=0.2)


@pytest.mark.parametrize(
    "url", ["http://u:p@127.0.0.1/", "http://", "http://[::1", "http://127.0.0.1:0/", "http://a b/"]
)
def test_urls_that_are_none(url):
    with pytest.raises(VideoError, match="URL"):
        download(url, most=10, seconds=1, name="it")


def test_a_request_whose_url_cannot_be_read():
    media = MediaReader(testing.tiny_model(), ServeSettings(allow_urls=True))
    for url in ("http://[x/a.mp4", "https://[::1"):
        with pytest.raises(RecordError, match="URL that cannot be read"):
            media.locate(url)


def test_the_default_refuses_this_machine(site):
    with pytest.raises(VideoError, match="not public"):
        download(f"http://127.0.0.1:{site.server_port}/file", most=10, seconds=5, name="it")
