"""Who may ask: the key of the API, and the names by which the server may be called."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import Request

from elva_jax.serving.problems import HttpError
from elva_jax.utils.numbers import shown

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def check_key(request: Request, key: str) -> None:
    """Compares the bearer token in constant time; an empty key lets everybody in.

    Raises:
      HttpError: a missing or wrong token; it is not repeated.
    """
    if not key:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise HttpError(
            401,
            "a wrong or missing API key; send Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def host_names(address: str, allowed: Iterable[str]) -> frozenset[str]:
    """The names that the Host header of a request may have; empty: any.

    A web page whose name was changed to 127.0.0.1 (DNS rebinding) reaches a server that listens
    there, and its requests look like those of the page's own site. Only their Host header differs.

    Args:
      address: the address that the server listens on.
      allowed: names by which clients call it besides; "*": any.
    """
    allowed = {name.lower() for name in allowed}
    if "*" in allowed or not (allowed or ipaddress.ip_address(address).is_loopback):
        return frozenset()
    return LOOPBACK | {address} | allowed


def check_host(request: Request, names: frozenset[str]) -> None:
    """Compares the host that the request names, without its port, with `host_names`.

    Raises:
      HttpError: it is another one.
    """
    given = request.headers.get("host", "")
    try:
        host = urlsplit(f"//{given}").hostname or ""
    except ValueError:
        host = ""
    if names and host not in names:
        raise HttpError(
            421,
            f"Host {shown(given)} is not served here; elva serve --allowed-host NAME adds a name",
            code="unknown_host",
        )
