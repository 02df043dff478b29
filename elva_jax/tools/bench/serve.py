"""`elva bench serve`: tokens per second and time to the first token of continuous batching."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from elva_jax.commands import flags
from elva_jax.tools.bench.arguments import add_repeats, counts
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import machine
from elva_jax.utils import numbers

if TYPE_CHECKING:
    from elva_jax.inference.continuous import ContinuousEngine, Done, GenerationRequest
    from elva_jax.inference.model import ElvaModel
    from elva_jax.inference.prefilled import Answer
    from elva_jax.video.clip import Visual

HELP = """\
Clients ask an engine about videos of noise over a still picture, each one question after another.
Answers have a fixed length. First, `ElvaModel.generate` answers one question after another; all
answers are compared with those. Starts and compilations are not timed.

example:
  elva bench serve --checkpoint runs/tiny --clients 1,16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    flags.add_checkpoint(parser)
    add, default = parser.add_argument, "(default: %(default)s)"
    text = f"numbers of clients, separated by commas {default}"
    add("--clients", type=counts, default=(1, 16), metavar="N,…", help=text)
    text = f"requests of each measurement {default}"
    add("--requests", type=numbers.ROWS, default=64, metavar="N", help=text)
    text = f"different videos, which requests ask about in turn {default}"
    add("--videos", type=numbers.ROWS, default=8, metavar="N", help=text)
    add("--frames", type=numbers.FRAMES, default=4, help=f"frames of a video {default}")
    text = f"longest edge of a frame in pixels {default}"
    add("--edge", type=numbers.EDGE, default=48, metavar="N", help=text)
    text = f"length of every answer {default}"
    add("--tokens", type=numbers.TOKENS, default=64, metavar="N", help=text)
    add("--slots", type=numbers.ROWS, default=16, help=f"requests that run at once {default}")
    text = "prefill for every request, as if no two asked about the same video"
    add("--no-sharing", action="store_true", help=text)
    flags.add_mesh(parser)
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures every number of clients in turn."""
    import elva_jax

    elva_jax.enable_compilation_cache()
    model = elva_jax.load(args.checkpoint, mesh=flags.open_mesh(args))
    return measure(model, args)


def measure(model: ElvaModel, args: argparse.Namespace) -> dict[str, Any]:
    """The report about a model; its answers no longer end by themselves."""
    from elva_jax.inference.continuous import ContinuousEngine, EngineSettings

    model.engine.end_ids = (-1,)
    videos = _videos(model, args)
    requests = _requests(model, videos, args)
    prompts = [request.prompt for request in requests]
    settings = EngineSettings(
        slots=args.slots,
        queue=len(requests),
        prefix_bytes=0 if args.no_sharing else 8 << 30,
        context=max(prompt.prefix_tokens for prompt in prompts),
        question=max(len(prompt.question) for prompt in prompts),
        max_new_tokens=args.tokens,
    )
    found: dict[int, list[dict[str, Any]]] = {clients: [] for clients in args.clients}
    alone = [
        _one_by_one(model, videos, args) for _ in range(args.repeats + 1)
    ]  # the first compiles
    answers = [alone[0][1]]
    with ContinuousEngine(model, settings) as engine:
        warm = engine.warm_up()
        for _ in range(args.repeats):
            for clients in args.clients:
                seconds, done = _serve(engine, requests, clients)
                answers.append([each.answer for each in done])
                found[clients].append(_summary(seconds, done))
        compilations = engine.stats().compilations
    same = all(each == answers[0] for each in answers)
    return {
        "machine": machine(),
        "model": dataclasses.asdict(model.model_config),
        "requests": len(requests),
        "videos": args.videos,
        "prefix_tokens": settings.context,
        "tokens": args.tokens,
        "slots": args.slots,
        "sharing": not args.no_sharing,
        "warm_up_seconds": warm,
        "compilations": compilations,
        "same": same,
        "ok": same and compilations == 0,
        "one_by_one": len(requests) * args.tokens / statistics.median(s for s, _ in alone[1:]),
        "clients": {str(n): _medians(runs) for n, runs in found.items()},
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    found = report["clients"]
    base = report["one_by_one"]
    rows = [["generate", f"{base:.0f}", "1.00", *["-"] * 5]]
    rows += [
        [
            clients,
            f"{each['tokens_per_second']:.0f}",
            f"{each['tokens_per_second'] / base:.2f}",
            *(f"{1e3 * each[name]:.0f}" for name in ("first_50", "first_95", "first_100")),
            f"{1e3 * each['queue_50']:.0f}",
            f"{1e3 * each['token_gap']:.1f}",
        ]
        for clients, each in found.items()
    ]
    answers = "equal" if report["same"] else "DIFFERENT"
    head = (
        f"{report['machine']['device']}, {report['requests']} requests about {report['videos']}"
        f" videos of {report['prefix_tokens']} tokens, {report['tokens']} tokens each,"
        f" {report['slots']} slots; answers {answers}, {report['compilations']} compilations;"
        f" warm-up {report['warm_up_seconds']:.1f} s"
    )
    columns = [
        "clients",
        "tokens/s",
        "times",
        "first token ms",
        "95 %",
        "most",
        "queue ms",
        "ms per token",
    ]
    return f"{head}\n{text_table(columns, rows)}"


def _videos(model: ElvaModel, args: argparse.Namespace) -> list[tuple[Visual, ...]]:
    import numpy as np

    rng = np.random.default_rng(0)
    videos: list[tuple[Visual, ...]] = []
    for _ in range(args.videos):
        still = rng.integers(0, 256, (args.edge, args.edge, 3), np.uint8)
        frames = np.repeat(still[None], args.frames, axis=0)
        half = args.edge // 2
        frames[:, :half] = rng.integers(0, 256, frames[:, :half].shape, np.uint8)
        videos.append((model.read_media(list(frames), frames=args.frames),))
    return videos


def _question(number: int) -> str:
    return f"What moves in part {number % 10} of the video?"


def _one_by_one(
    model: ElvaModel, videos: Sequence[tuple[Visual, ...]], args: argparse.Namespace
) -> tuple[float, list[Answer]]:
    """Answers all requests without an engine; returns the seconds and the answers."""
    from elva_jax.inference.media import Request

    start, answers = time.perf_counter(), []
    for number in range(args.requests):
        asked = Request(videos[number % len(videos)], _question(number))
        answers += model.generate([asked], max_new_tokens=args.tokens)
    return time.perf_counter() - start, answers


def _requests(
    model: ElvaModel, videos: Sequence[tuple[Visual, ...]], args: argparse.Namespace
) -> list[GenerationRequest]:
    """Requests about every video in turn, each with another question."""
    from elva_jax.inference.continuous import request

    requests = [
        request(model, videos[number % len(videos)], _question(number), max_new_tokens=args.tokens)
        for number in range(args.requests)
    ]
    if not args.no_sharing:
        return requests
    return [
        dataclasses.replace(each, prefix_key=f"{number} {each.prefix_key}")
        for number, each in enumerate(requests)
    ]


def _serve(
    engine: ContinuousEngine, requests: Sequence[GenerationRequest], clients: int
) -> tuple[float, list[Done]]:
    """Serves all requests to so many clients; returns the seconds and the results."""
    done: dict[int, Done] = {}

    def client(number: int) -> None:
        for index in range(number, len(requests), clients):
            done[index] = engine.submit(requests[index]).result()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, [done[index] for index in range(len(requests))]


def _summary(seconds: float, done: Sequence[Done]) -> dict[str, float]:
    first = sorted(each.seconds.first_token for each in done)
    tokens = sum(each.completion_tokens for each in done)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "first_50": statistics.median(first),
        "first_95": first[int(0.95 * (len(first) - 1))],
        "first_100": first[-1],
        "queue_50": statistics.median(each.seconds.queue for each in done),
        "token_gap": statistics.median(
            each.seconds.decode / max(each.completion_tokens - 1, 1) for each in done
        ),
    }


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
