"""Downloads from public addresses only: a request must not reach into the server's own network.

Names are resolved here, and the connection is made to the address that was checked, so that a name
cannot change its address in between. Every redirect is checked in the same way.
"""

from __future__ import annotations

import ipaddress
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable

import httpcore

from elva_jax.errors import VideoError

Allowed = Callable[[str], bool]  # takes a numeric address
MOST_REDIRECTS = 3
CONNECT_SECONDS = 5.0
REDIRECTS = (301, 302, 303, 307, 308)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, whatever it is wrapped in."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        within = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if within is None and found in NAT64:
            within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if within is not None:
            return is_public(str(within))
        if found.is_site_local:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class _Refused(Exception):
    """A name leads to an address that is not public."""


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects to allowed addresses only."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed, self._backend = allowed, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolves the name, and connects to its first address if all are allowed."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("its host is not known") from None
        addresses = [str(item[4][0]) for item in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise _Refused
        return self._backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def download(
    url: str, *, most: int, seconds: float, name: str, allowed: Allowed = is_public
) -> bytes:
    """The content of an http or https URL.

    Args:
      url: the URL.
      most: bytes of the content.
      seconds: for everything together.
      name: of the medium, in errors.
      allowed: says which addresses may be reached.

    Raises:
      VideoError: a URL that cannot be read, an address that is not public, or a limit.
    """
    end = time.monotonic() + seconds
    with httpcore.ConnectionPool(
        network_backend=_GuardedBackend(allowed), max_connections=1
    ) as pool:
        try:
            for _ in range(MOST_REDIRECTS + 1):
                content, url = _get(pool, _checked(url, name), most, end, name)
                if not url:
                    return content
        except _Refused:
            # One message for whatever is there, so that nobody can map the network with it.
            raise VideoError(name, "its address is not public") from None
        except httpcore.TimeoutException:
            raise VideoError(name, f"takes longer than {seconds:g} s to download") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError):
            raise VideoError(name, "cannot be downloaded; check the URL") from None
    raise VideoError(name, f"has more than {MOST_REDIRECTS} redirects")


def _checked(url: str, name: str) -> str:
    """The URL, if it can be asked for."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise VideoError(name, "its URL cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise VideoError(name, "its URL is not one of http or https")
    if parts.username is not None or parts.password is not None:
        raise VideoError(name, "its URL holds a name or password; remove them")
    if not url.isascii() or any(letter <= " " for letter in url):
        raise VideoError(name, "its URL has letters that must be percent-encoded")
    return urllib.parse.urldefrag(url).url


def _get(
    pool: httpcore.ConnectionPool, url: str, most: int, end: float, name: str
) -> tuple[bytes, str]:
    """The content, or else where a redirect leads."""
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    waits = {"connect": min(left, CONNECT_SECONDS), "read": left, "write": left, "pool": left}
    headers: list[tuple[bytes | str, bytes | str]] = [
        ("Accept", "image/*, video/*"),
        ("Accept-Encoding", "identity"),
    ]
    with pool.stream("GET", url, headers=headers, extensions={"timeout": waits}) as response:
        if response.status in REDIRECTS:
            location = _header(response, b"location").decode("ascii", "replace")
            return b"", urllib.parse.urljoin(url, location)
        if response.status != 200:
            raise VideoError(name, f"the status of its URL is {response.status}")
        content = bytearray()
        for chunk in response.iter_stream():
            content += chunk
            if len(content) > most:
                raise VideoError(name, f"has more than {most >> 20} MiB")
            if time.monotonic() > end:
                raise httpcore.ReadTimeout
        return bytes(content), ""


def _header(response: httpcore.Response, wanted: bytes) -> bytes:
    """A header, whatever its letters' case."""
    return next((value for name, value in response.headers if name.lower() == wanted), b"")
