"""Who may ask: the key of the API."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from elva_jax.serving.problems import HttpError


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
