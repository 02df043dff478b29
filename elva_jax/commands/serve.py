"""The sub-command `elva serve`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import elva_jax
from elva_jax.commands import flags
from elva_jax.errors import StartError
from elva_jax.utils import garbage, numbers, signals

if TYPE_CHECKING:  # imports JAX, and packages of the extra [serve]
    from elva_jax.inference.continuous.engine import ContinuousEngine
    from elva_jax.serving.server import Server
    from elva_jax.serving.settings import ServeSettings

HELP = """\
Answers questions about images and videos over HTTP, for clients of OpenAI's API: /v1/models and
/v1/chat/completions, with /health and /metrics. Requests join and leave the running batch between
two tokens. SIGTERM or Ctrl-C ends it once the running requests have their answers: status 0, or 143
(130) if some were cut off after --drain-timeout.

examples:
  elva serve --checkpoint runs/7b --port 8000
  ELVA_API_KEY=secret elva serve --checkpoint runs/7b --host 0.0.0.0 --media-dir videos
  elva serve --checkpoint runs/7b --weights int8 --slots 8 --frames 32 --context 16384"""
KEY_VARIABLE = "ELVA_API_KEY"
MEBIBYTE = 2**20
MEMORY = numbers.whole(0, 2**24)  # MiB
WARM_UPS = {"on": (True,), "both": (True, False), "off": ()}
WATCH_SECONDS = 0.5


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds it with `command(name, text, run)`, which makes a sub-command of `elva`."""
    serve = command("serve", HELP, run)
    flags.add_checkpoint(serve)
    flags.add_frames(serve)
    flags.add_mesh(serve)
    flags.add_weights(serve)
    flags.add_prefill_chunk(serve)
    flags.add_merging_profiles(serve.add_argument)
    _add_network(serve.add_argument_group("network").add_argument)
    _add_media(serve.add_argument_group("media").add_argument)
    _add_limits(serve.add_argument_group("limits").add_argument)


def _add_network(add: Callable[..., Any]) -> None:
    default = "(default: %(default)s)"
    text = f"address to listen on; 0.0.0.0: every one of this machine {default}"
    add("--host", default="127.0.0.1", metavar="HOST", help=text)
    text = f"0: any free one, which is printed {default}"
    add("--port", type=numbers.whole(0, 65535), default=8000, metavar="N", help=text)
    text = f"what clients must send as a bearer token (default: the variable {KEY_VARIABLE}, which"
    add("--api-key", metavar="KEY", help=f"{text} no other user of this machine can see)")
    text = "name by which clients may call a server on a loopback address besides localhost, as a"
    text += " proxy on this machine does; *: any; may be given several times"
    add("--allowed-host", action="append", default=[], metavar="NAME", help=text)
    text = "let web pages of this origin read replies; *: all; may be given several times"
    add("--cors", action="append", default=[], metavar="ORIGIN", help=text)
    text = "what clients call the model; may be given several times (default: elva)"
    add("--served-model-name", action="append", default=[], metavar="NAME", help=text)
    text = f"longest wait for running requests at the end {default}"
    add("--drain-timeout", type=numbers.SECONDS, default=30.0, metavar="SECONDS", help=text)


def _add_media(add: Callable[..., Any]) -> None:
    default = "(default: %(default)s)"
    text = "let clients name files below this folder (default: none; they send data: URLs)"
    add("--media-dir", type=Path, metavar="DIR", help=text)
    text = "download media from http(s) URLs with public addresses"
    add("--allow-urls", action="store_true", help=text)
    text = f"longest time for reading or downloading one image or video {default}"
    add("--media-timeout", type=numbers.SECONDS, default=60.0, metavar="SECONDS", help=text)
    text = f"memory for media that were read {default}"
    add("--media-cache", type=MEMORY, default=512, metavar="MIB", help=text)
    text = "threads that read media (default: one per core, at most 8)"
    add("--workers", type=numbers.WORKERS, metavar="N", help=text)


def _add_limits(add: Callable[..., Any]) -> None:
    default = "(default: %(default)s)"
    text = f"requests that decode at once {default}"
    add("--slots", type=numbers.ROWS, default=16, metavar="N", help=text)
    text = f"requests that wait for them; one more has the answer 429 {default}"
    add("--max-queue", type=numbers.ROWS, default=64, metavar="N", help=text)
    text = f"largest request {default}"
    add("--max-body", type=numbers.whole(1, 2**20), default=64, metavar="MIB", help=text)
    text = f"longest answer, and the length where a request does not say {default}"
    add("--max-new-tokens", type=numbers.TOKENS, default=512, metavar="N", help=text)
    text = f"longest prompt up to its last image or video, before merging {default}"
    add("--context", type=numbers.TOKENS, default=4096, metavar="N", help=text)
    text = f"longest text after it {default}"
    add("--question", type=numbers.TOKENS, default=512, metavar="N", help=text)
    text = f"device memory for videos that may be asked about again {default}"
    add("--prefix-cache", type=MEMORY, default=2048, metavar="MIB", help=text)
    text = "compile all programs before the first request: with merging and each --merging-profile,"
    text += f" without merging as well, or not at all {default}"
    add("--warm-up", choices=tuple(WARM_UPS), default="on", help=text)


@flags.library_notices()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Serves until a signal comes, and returns the exit status."""
    from elva_jax.inference.continuous.engine import ContinuousEngine
    from elva_jax.inference.continuous.requests import EngineSettings
    from elva_jax.serving.server import Server, bind

    settings, hybrid = _settings(args), flags.hybrid_settings(args)
    named = flags.merging_profiles(args)
    limits = EngineSettings(
        slots=args.slots,
        queue=args.max_queue,
        prefix_bytes=args.prefix_cache * MEBIBYTE,
        context=args.context,
        question=args.question,
        max_new_tokens=args.max_new_tokens,
    )
    bound = bind(args.host, args.port)
    with garbage.paused():
        elva_jax.enable_compilation_cache()
        model = elva_jax.load(
            args.checkpoint,
            mesh=flags.open_mesh(args),
            weights=args.weights,
            prefill_chunk=args.prefill_chunk,
        )
    frames = model.hybrid(**hybrid) if hybrid else args.frames
    model.add_merging_profiles(*named)
    with ContinuousEngine(model, limits) as engine:
        if args.warm_up != "off":
            engine.warm_up((*WARM_UPS[args.warm_up], *model.merging_profiles.values()))
        stop = _Stop()
        with Server(model, engine, settings, bound, frames=frames) as server, stop:
            print(f"{server.url} serves {', '.join(settings.model_names)}", flush=True)
            number = _wait(stop, server, engine)
            print("finishing the running requests", file=sys.stderr, flush=True)
            if server.stop():
                return 0
            engine.close()
    print("elva serve: requests were cut off after --drain-timeout", file=sys.stderr)
    return 128 + number


def _settings(args: argparse.Namespace) -> ServeSettings:
    from elva_jax.serving.settings import ServeSettings

    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE, "")
    return ServeSettings(
        model_names=tuple(args.served_model_name) or ("elva",),
        api_key=key,
        allowed_hosts=tuple(args.allowed_host),
        cors=tuple(args.cors),
        media_dir=args.media_dir,
        allow_urls=args.allow_urls,
        most_requests=args.slots + args.max_queue,
        max_body=args.max_body * MEBIBYTE,
        max_new_tokens=args.max_new_tokens,
        max_prompt_tokens=args.context + args.question,
        media_cache=args.media_cache * MEBIBYTE,
        readers=args.workers or min(len(os.sched_getaffinity(0)), 8),
        media_seconds=args.media_timeout,
        drain_seconds=args.drain_timeout,
    )


class _Stop:
    """Within the block, the first signal is a request to end; a second Ctrl-C acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self.asked = threading.Event()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in signals.SIGNALS:
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            signal.signal(number, self._old[number])
            signal.raise_signal(number)
        self.number = self.number or number
        self.asked.set()


def _wait(stop: _Stop, server: Server, engine: ContinuousEngine) -> int:
    """Waits for a signal, and returns its number.

    Raises:
      StartError: the server or the engine has ended by itself.
    """
    while not stop.asked.wait(WATCH_SECONDS):
        if not (server.alive and engine.healthy):
            raise StartError("the engine or the server has ended; the lines above say why")
    return stop.number
