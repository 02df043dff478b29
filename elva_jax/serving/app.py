"""The paths of the server."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from elva_jax.serving.access import check_host, check_key, host_names
from elva_jax.serving.chat import ChatEndpoint, Engine, error_response
from elva_jax.serving.metrics import Metrics
from elva_jax.serving.problems import HttpError, internal
from elva_jax.serving.settings import ServeSettings
from elva_jax.utils.numbers import shown

OWNER = "elva_jax"


def make_app(
    engine: Engine, chat: ChatEndpoint, settings: ServeSettings, metrics: Metrics, address: str
) -> Starlette:
    """The ASGI application of a server that listens on `address`.

    `/v1/...` needs the key of the API, if there is one; `/health` and `/metrics` do not.
    """
    created = int(time.time())

    def described(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": OWNER}

    async def models(request: Request) -> Response:
        check_key(request, settings.api_key)
        return JSONResponse(
            {"object": "list", "data": [described(name) for name in settings.model_names]}
        )

    async def model(request: Request) -> Response:
        check_key(request, settings.api_key)
        name = request.path_params["name"]
        if name not in settings.model_names:
            raise HttpError(404, f"no model {shown(name)}", param="model", code="model_not_found")
        return JSONResponse(described(name))

    async def health(request: Request) -> Response:
        ready = engine.stats().healthy and not chat.draining
        return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)

    async def scrape(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/health", health),
        Route("/metrics", scrape),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
    )
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(_HostCheck, names=host_names(address, settings.allowed_hosts)),
            *([cors] if settings.cors else []),
        ],
        exception_handlers={HTTPException: _http, HttpError: _problem, Exception: _bug},
    )


class _HostCheck:
    """Lets requests through whose Host header is one of the names."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, app = Request(scope), self._app
        try:
            check_host(request, self._names)
        except HttpError as problem:
            app = error_response(problem, request)
        await app(scope, receive, send)


def _http(request: Request, error: Exception) -> Response:
    """The answer to an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    text = {404: "no such path", 405: f"{request.method} is not answered here"}
    message = f"{text.get(error.status_code, error.detail)}: {shown(request.url.path)}"
    return error_response(HttpError(error.status_code, message, headers=error.headers), request)


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error_response(error, request)


def _bug(request: Request, error: Exception) -> Response:
    return error_response(internal(), request)
