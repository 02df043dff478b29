"""`elva bench serve`: tokens per second and time to the first token of continuous batching."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

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

Result = TypeVar("Result")
HELP = """\
Clients ask an engine about videos of noise over a still picture, each one question after another.
Answers have a fixed length and come whole. In turn with them, `ElvaModel.generate` answers one
question after another; all answers are compared with those. Starts and compilations are not timed.

"times" compares tokens per second, "by CPU" tokens per second of processor time, which other
programs disturb less. "rest" is the time to the first token without the queue; the goal is at most
twice the time to the first token with one client.

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
    alone: list[Spent] = []
    answers = [_one_by_one(model, videos, args)]  # compiles
    with ContinuousEngine(model, settings) as engine:
        warm = engine.warm_up()
        for _ in range(args.repeats):
            spent, written = _timed(lambda: _one_by_one(model, videos, args))
            alone.append(spent)
            answers.append(written)
            for clients in args.clients:
                spent, done = _timed(partial(_serve, engine, requests, clients))
                answers.append([each.answer for each in done])
                found[clients].append(_summary(spent, done))
        compilations = engine.stats().compilations
    same = all(each == answers[0] for each in answers)
    tokens = len(requests) * args.tokens
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
        "one_by_one": tokens / statistics.median(each.seconds for each in alone),
        "one_by_one_cpu": tokens / statistics.median(each.cpu for each in alone),
        "clients": {str(n): _medians(runs) for n, runs in found.items()},
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    found = report["clients"]
    base, base_cpu = report["one_by_one"], report["one_by_one_cpu"]
    rows = [["generate", f"{base:.0f}", "1.00", "1.00", *["-"] * 8]]
    marks = ("first_50", "first_95", "first_100", "queue_50", "queue_95", "rest_50", "rest_95")
    rows += [
        [
            clients,
            f"{each['tokens_per_second']:.0f}",
            f"{each['tokens_per_second'] / base:.2f}",
            f"{each['tokens_per_cpu_second'] / base_cpu:.2f}",
            *(f"{1e3 * each[name]:.1f}" for name in marks),
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
        "by CPU",
        "first token ms",
        "95 %",
        "most",
        "queue ms",
        "95 %",
        "rest ms",
        "95 %",
        "ms per token",
    ]
    return "\n".join([head, text_table(columns, rows), *_goals(report)])


def _goals(report: dict[str, Any]) -> list[str]:
    """A line per goal that can be judged: it takes one client, and 16 or more."""
    found = {int(clients): each for clients, each in report["clients"].items()}
    one, most = found.get(1), max(found)
    if one is None or most < 16:
        return []
    many = found[most]
    times = many["tokens_per_second"] / report["one_by_one"]
    met = _met(reached=times >= 5)
    lines = [f"{most} clients: {times:.2f} times the tokens per second; goal 5: {met}"]
    for share in (50, 95):
        first, queue = (1e3 * many[f"{name}_{share}"] for name in ("first", "queue"))
        bound = 2e3 * one[f"first_{share}"] + queue
        lines.append(
            f"first token, {share} %: {first:.1f} ms;"
            f" goal 2 x {1e3 * one[f'first_{share}']:.1f} + queue {queue:.1f} = {bound:.1f} ms:"
            f" {_met(reached=first <= bound)}"
        )
    return lines


def _met(*, reached: bool) -> str:
    return "reached" if reached else "missed"


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
) -> list[Answer]:
    """Answers all requests without an engine."""
    from elva_jax.inference.media import Request

    answers: list[Answer] = []
    for number in range(args.requests):
        asked = Request(videos[number % len(videos)], _question(number))
        answers += model.generate([asked], max_new_tokens=args.tokens)
    return answers


def _requests(
    model: ElvaModel, videos: Sequence[tuple[Visual, ...]], args: argparse.Namespace
) -> list[GenerationRequest]:
    """Requests about every video in turn, each with another question."""
    from elva_jax.inference.continuous import request

    requests = [
        request(
            model,
            videos[number % len(videos)],
            _question(number),
            max_new_tokens=args.tokens,
            stream=False,
        )
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
) -> list[Done]:
    """Serves all requests to so many clients."""
    done: dict[int, Done] = {}

    def client(number: int) -> None:
        for index in range(number, len(requests), clients):
            done[index] = engine.submit(requests[index]).result()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [done[index] for index in range(len(requests))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds by the clock, and of all processors in this process."""

    seconds: float
    cpu: float


def _timed(work: Callable[[], Result]) -> tuple[Spent, Result]:
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    spent = Spent(seconds=time.perf_counter() - start, cpu=time.process_time() - cpu)
    return spent, result


def _summary(spent: Spent, done: Sequence[Done]) -> dict[str, float]:
    tokens = sum(each.completion_tokens for each in done)
    times = {
        "first": [each.seconds.first_token for each in done],
        "queue": [each.seconds.queue for each in done],
        "rest": [each.seconds.first_token - each.seconds.queue for each in done],
    }
    marks = {
        f"{name}_{share}": sorted(values)[round(share / 100 * (len(values) - 1))]
        for name, values in times.items()
        for share in (50, 95, 100)
    }
    return marks | {
        "seconds": spent.seconds,
        "cpu_seconds": spent.cpu,
        "tokens_per_second": tokens / spent.seconds,
        "tokens_per_cpu_second": tokens / spent.cpu,
        "token_gap": statistics.median(
            each.seconds.decode / max(each.completion_tokens - 1, 1) for each in done
        ),
    }


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
