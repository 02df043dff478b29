"""A server in a thread of its own, from its socket to the end of its last request."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType

import uvicorn

from elva_jax.errors import ConfigError, StartError, first_line
from elva_jax.inference.prompts import PromptReader
from elva_jax.serving.app import make_app
from elva_jax.serving.chat import ChatEndpoint, Engine
from elva_jax.serving.media import MediaReader
from elva_jax.serving.metrics import Metrics
from elva_jax.serving.protocol import protocol
from elva_jax.serving.questions import QuestionReader
from elva_jax.serving.settings import ServeSettings
from elva_jax.serving.urls import Allowed, is_public
from elva_jax.utils.failures import explain
from elva_jax.video.hybrid import Hybrid

KEEP_ALIVE_SECONDS = 30
START_SECONDS = 30.0
CUT_SECONDS = 1.0  # for answers that were cut off to say so
BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet, so that a port in use is told before a long start.

    Args:
      host: a name or address of this machine.
      port: 0: a free one.

    Raises:
      ConfigError: there is no such address, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: is no address ({first_line(error)})") from None
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port}: {explain(error)}") from None
    return bound


class Server:
    """Answers requests until `stop`; a context manager.

    Args:
      model: renders the prompts; requests may name its merging profiles.
      engine: answers; the caller closes it, after `stop`.
      settings: names, keys and limits.
      bound: from `bind`; it is closed at the end.
      frames: how videos are sampled where a request does not say.
      allowed: says which addresses downloads may reach.

    Attributes:
      url: of the API, with /v1.
    """

    def __init__(
        self,
        model: PromptReader,
        engine: Engine,
        settings: ServeSettings,
        bound: socket.socket,
        *,
        frames: int | Hybrid | None = None,
        allowed: Allowed = is_public,
    ) -> None:
        media = MediaReader(model, settings, allowed)
        metrics = Metrics(engine.stats, media.cache, model.merging_profiles)
        questions = QuestionReader(model, media, settings, frames)
        self._chat = ChatEndpoint(engine, questions, settings, metrics)
        self._settings, self._bound = settings, bound
        config = uvicorn.Config(
            make_app(engine, self._chat, settings, metrics, bound.getsockname()[0]),
            http=protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        host, port = bound.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def __enter__(self) -> Server:
        """Starts to listen.

        Raises:
          StartError: it does not within START_SECONDS.
        """
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise StartError(f"the server at {self.url} did not start; see the lines above")
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(0.0)
        self.cut_off()

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def stop(self, seconds: float | None = None) -> bool:
        """Accepts nothing more, and waits for the running requests.

        Args:
          seconds: longest wait; None: as the settings say.

        Returns:
          Whether all have ended.
        """
        self._chat.draining = True
        self._uvicorn.should_exit = True
        self._thread.join(self._settings.drain_seconds if seconds is None else seconds)
        return not self._thread.is_alive()

    def cut_off(self) -> None:
        """Ends the connections that `stop` has left, once the engine has been closed."""
        self._thread.join(CUT_SECONDS)
        self._uvicorn.force_exit = True
        self._thread.join(CUT_SECONDS)
        self._chat.close()

    def _run(self) -> None:
        self._uvicorn.run(sockets=[self._bound])
