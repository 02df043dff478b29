"""`elva recaption`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elva_jax.commands import flags

if TYPE_CHECKING:
    from elva_jax.tools.recaption.engine import Engine
    from elva_jax.tools.recaption.plan import Plan

HELP = """\
Describes the images and videos of a manifest in detail with a Qwen2-VL, and writes conversations in LLaVA's JSONL format.
A line of the manifest: {"id": "7", "image": "a/b.jpg"} (or "video"), and what is known: "caption" (text), "objects" and "ocr" (lists).
Started again it goes on where it stopped. docs/recaption.md tells more.

examples:
  elva recaption --manifest m.jsonl --out captions.jsonl --endpoint http://localhost:8000/v1 --dry-run
  elva recaption --manifest m.jsonl --out captions.jsonl --endpoint http://localhost:8000/v1 --concurrency 64 --shard 0/8
  elva recaption --manifest m.jsonl --out captions.jsonl --model weights/Qwen2-VL-7B-Instruct"""


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `recaption` with `command(name, summary, text, run)`, which makes a sub-command of `elva`."""
    parser = command(
        "recaption", "describe images and videos in detail with a Qwen2-VL", HELP, _run
    )
    parser.add_argument(
        "--manifest",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help="the media and what is known about them",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help="captions; beside it FILE.rejected.jsonl",
    )
    parser.add_argument(
        "--media-dir",
        type=Path,
        metavar="DIR",
        help="what the manifest's paths are relative to (default: its folder)",
    )
    parser.add_argument(
        "--model",
        default="Qwen/Qwen2-VL-7B-Instruct",
        metavar="NAME",
        help="folder, hub or served name (%(default)s)",
    )
    parser.add_argument(
        "--shard",
        type=flags.shard,
        default=(0, 1),
        metavar="I/N",
        help="part I (from 0) of N, into a file of its own",
    )
    parser.add_argument(
        "--max-frames",
        type=flags.positive,
        default=128,
        metavar="N",
        help="of a video (default: %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=flags.positive,
        default=1024,
        metavar="N",
        help="longest caption (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency",
        type=flags.positive,
        metavar="N",
        help="requests under way (default: 16; in process 2)",
    )
    parser.add_argument(
        "--gpus",
        type=flags.positive,
        default=1,
        metavar="N",
        help="behind the engine, for the estimate of the time",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="estimate requests, tokens and time, and stop"
    )
    remote = parser.add_argument_group(
        "an OpenAI-compatible endpoint (default: transformers in this process)"
    )
    remote.add_argument(
        "--endpoint",
        metavar="URL",
        help="such as http://localhost:8000/v1; its key is read from OPENAI_API_KEY",
    )
    remote.add_argument(
        "--timeout",
        type=seconds,
        default=300.0,
        metavar="S",
        help="seconds without an answer (default: %(default)g)",
    )
    remote.add_argument(
        "--tries",
        type=flags.positive,
        default=6,
        metavar="N",
        help="of a request (default: %(default)s)",
    )
    remote.add_argument(
        "--frames-as",
        choices=("images", "video"),
        default="images",
        help="how a video is sent; vLLM takes both (default: %(default)s)",
    )
    local = parser.add_argument_group("transformers in this process")
    local.add_argument(
        "--device", default="auto", help="of PyTorch (default: cuda where there is one)"
    )
    local.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="(default: %(default)s)",
    )


def seconds(text: str) -> float:
    """A length of time above 0; for `type=` of an option."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _run(args: argparse.Namespace, _) -> int:
    from elva_jax.tools.recaption import manifest, run
    from elva_jax.tools.recaption.output import Journal, agree, recover
    from elva_jax.tools.recaption.plan import plan

    index, count = args.shard
    out = (
        args.out
        if count == 1
        else args.out.with_name(f"{args.out.stem}-{index:05d}-of-{count:05d}{args.out.suffix}")
    )
    planned = plan(
        manifest.read(args.manifest, args.media_dir or args.manifest.parent), index, count
    )
    if args.dry_run:
        _print_estimate(
            args, planned, run.finished(recover(out)[0], recover(run.rejected_path(out))[0])
        )
        return 0
    with Journal(out) as captions, Journal(run.rejected_path(out)) as rejected:
        agree(out, _settings(args))
        _print_estimate(args, planned, run.finished(captions.lines, rejected.lines))
        report = run.run(
            planned,
            _engine(args),
            captions,
            rejected,
            max_frames=args.max_frames,
            concurrency=args.concurrency or (16 if args.endpoint else 2),
        )
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(report.rejected.items()))
    print(
        f"{out}: {report.captions} captions ({report.prompt_tokens:,} tokens read, {report.new_tokens:,} written)"
    )
    if reasons or report.failed:
        failed = (
            f"{report.failed} requests failed, start again to ask again" if report.failed else ""
        )
        print(f"{run.rejected_path(out)}: {'; '.join(text for text in (reasons, failed) if text)}")
    return 1 if report.failed else 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a caption depends on, beside its medium."""
    from elva_jax.tools.recaption.prompts import fingerprint

    frames_as = args.frames_as if args.endpoint else "video"
    limits = {"max_frames": args.max_frames, "max_new_tokens": args.max_new_tokens}
    return {"model": args.model, "prompts": fingerprint(), "frames_as": frames_as, **limits}


def _print_estimate(args: argparse.Namespace, planned: Plan, done: set[str]) -> None:
    from elva_jax.tools.recaption.estimate import CAPTION_TOKENS, duration, estimate

    as_images = args.endpoint and args.frames_as == "images"
    items = [item for item in planned.items if item.id not in done]
    found = estimate(
        items,
        max_frames=args.max_frames,
        max_new_tokens=args.max_new_tokens,
        frames_per_token=1 if as_images else 2,
    )
    kinds = ", ".join(f"{number:,} {kind}s" for kind, number in found.requests.items())
    print(
        f"{sum(found.requests.values()):,} requests ({kinds}); {len(done):,} items are done, {len(planned.duplicates):,} repeat others"
    )
    guess = " and ".join(
        f"{tokens} for {'an' if kind == 'image' else 'a'} {kind}"
        for kind, tokens in CAPTION_TOKENS.items()
    )
    print(
        f"about {found.prompt_tokens:,} tokens to read and {found.new_tokens:,} to write (a guess of {guess})"
    )
    hours = duration(found.gpu_seconds / args.gpus)
    print(
        f"about {hours} on {args.gpus} A100 at the paper's rate (--gpus), {found.gpu_seconds / 3600:,.1f} GPU hours",
        flush=True,
    )


def _engine(args: argparse.Namespace) -> Engine:
    if args.endpoint:
        from elva_jax.tools.recaption.endpoint import Endpoint

        key = os.environ.get("OPENAI_API_KEY", "")
        settings = dict(
            api_key=key, max_new_tokens=args.max_new_tokens, timeout=args.timeout, tries=args.tries
        )
        return Endpoint(args.endpoint, args.model, **settings, frames_as=args.frames_as)
    from elva_jax.tools.recaption.local import Local

    return Local.load(
        args.model, device=args.device, dtype=args.dtype, max_new_tokens=args.max_new_tokens
    )
