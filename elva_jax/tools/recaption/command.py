"""`elva recaption`: its options and its output."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elva_jax.commands import flags
from elva_jax.utils import numbers

if TYPE_CHECKING:
    from elva_jax.tools.recaption.engine import Engine
    from elva_jax.tools.recaption.plan import Plan

HELP = """\
Describes the images and videos of a manifest in detail with a Qwen2-VL, and writes conversations
in LLaVA's JSONL format. A line of the manifest is {"id": "7", "image": "a/b.jpg"} (or "video"),
with optional hints: "caption" (text), "objects" and "ocr" (lists).
Started again, it continues where it stopped. Details are in docs/recaption.md.

examples:
  elva recaption --manifest m.jsonl --out c.jsonl --endpoint http://localhost:8000/v1 --dry-run
  elva recaption --manifest m.jsonl --out c.jsonl --endpoint http://localhost:8000/v1 --shard 0/8
  elva recaption --manifest m.jsonl --out c.jsonl --model weights/Qwen2-VL-7B-Instruct"""


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `recaption` with `command(name, text, run)`, which makes a sub-command."""
    parser = command("recaption", HELP, _run)
    add, file = parser.add_argument, "FILE.jsonl"
    text = "the media and hints for them"
    add("--manifest", required=True, type=Path, metavar=file, help=text)
    text = "captions; rejected items go to FILE.rejected.jsonl beside it"
    add("--out", required=True, type=flags.output_file("--out"), metavar=file, help=text)
    text = "folder of the manifest's paths (default: the manifest's folder)"
    add("--media-dir", type=Path, metavar="DIR", help=text)
    text = "folder, hub name or served name (default: %(default)s)"
    add("--model", default="Qwen/Qwen2-VL-7B-Instruct", metavar="NAME", help=text)
    text = "caption part I (from 0) of N, into a file of its own"
    add("--shard", type=flags.shard, default=(0, 1), metavar="I/N", help=text)
    text = "most frames per video (default: %(default)s)"
    add("--max-frames", type=numbers.FRAMES, default=128, metavar="N", help=text)
    text = "longest caption (default: %(default)s)"
    add("--max-new-tokens", type=numbers.TOKENS, default=1024, metavar="N", help=text)
    text = "requests at a time (default: 16; in this process 2)"
    add("--concurrency", type=numbers.WORKERS, metavar="N", help=text)
    text = "GPUs of the engine, for the estimate of the time (default: %(default)s)"
    add("--gpus", type=numbers.ROWS, default=1, metavar="N", help=text)
    add("--dry-run", action="store_true", help="only estimate requests, tokens and time")

    add = parser.add_argument_group(
        "an OpenAI-compatible endpoint (default: transformers in this process)"
    ).add_argument
    text = "such as http://localhost:8000/v1; OPENAI_API_KEY holds its key"
    add("--endpoint", metavar="URL", help=text)
    text = "give up after S seconds without an answer (default: %(default)g)"
    add("--timeout", type=numbers.SECONDS, default=300.0, metavar="S", help=text)
    text = "tries per request (default: %(default)s)"
    add("--tries", type=numbers.whole(1, 1000), default=6, metavar="N", help=text)
    text = "how a video is sent; vLLM accepts both (default: %(default)s)"
    add("--frames-as", choices=("images", "video"), default="images", help=text)

    add = parser.add_argument_group("transformers in this process").add_argument
    add("--device", default="auto", help="PyTorch device (default: cuda if there is one)")
    types, text = ("bfloat16", "float16", "float32"), "compute type (default: %(default)s)"
    add("--dtype", choices=types, default="bfloat16", help=text)


def _run(args: argparse.Namespace, _: list[str]) -> int:
    from elva_jax.tools.recaption import manifest, output, run
    from elva_jax.tools.recaption.plan import plan_shard

    index, count = args.shard
    out: Path = args.out
    if count > 1:
        out = out.with_name(f"{out.stem}-{index:05d}-of-{count:05d}{out.suffix}")
    rejected_out = run.rejected_path(out)
    media_dir: Path = args.media_dir or args.manifest.parent
    plan = plan_shard(manifest.read(args.manifest, media_dir), index, count)
    run.check_media(plan, media_dir)
    if args.dry_run:
        done = run.finished(output.read_journal(out)[0], output.read_journal(rejected_out)[0])
        _print_estimate(args, plan, done)
        return 0
    settings = output.settings_path(out)
    output.refuse_inputs((out, rejected_out, settings), (args.manifest,))
    with (
        output.open_journal(out, settings, "conversations") as captions,
        output.open_journal(rejected_out, settings, "reason") as rejected,
    ):
        output.check_settings(out, _settings(args))
        _print_estimate(args, plan, run.finished(captions.lines, rejected.lines))
        concurrency = args.concurrency or (16 if args.endpoint else 2)
        limits = {"max_frames": args.max_frames, "concurrency": concurrency}
        report = run.run(plan, _engine(args), captions, rejected, **limits)
    tokens = f"{report.prompt_tokens:,} tokens read, {report.new_tokens:,} written"
    print(f"{out}: {report.new_captions} captions ({tokens})")
    notes = [", ".join(f"{number} {reason}" for reason, number in sorted(report.reasons.items()))]
    if report.failed:
        notes.append(f"{report.failed} requests failed, start again to send them again")
    if any(notes):
        print(f"{rejected_out}: {'; '.join(filter(None, notes))}")
    nothing = not (report.new_captions or captions.lines) and bool(report.reasons)
    return 1 if report.failed or nothing else 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that a caption depends on, apart from its medium."""
    from elva_jax.tools.recaption.prompts import fingerprint

    frames_as = args.frames_as if args.endpoint else "video"
    limits = {"max_frames": args.max_frames, "max_new_tokens": args.max_new_tokens}
    return {"model": args.model, "prompts": fingerprint(), "frames_as": frames_as, **limits}


def _print_estimate(args: argparse.Namespace, plan: Plan, done: set[str]) -> None:
    from elva_jax.tools.recaption.estimate import CAPTION_TOKENS, duration, estimate

    found = estimate(
        [item for item in plan.items if item.id not in done],
        max_frames=args.max_frames,
        max_new_tokens=args.max_new_tokens,
        frames_per_token=1 if args.endpoint and args.frames_as == "images" else 2,
    )
    kinds = ", ".join(f"{number:,} {kind}s" for kind, number in found.requests.items())
    rest = f"{len(done):,} items are done, {len(plan.duplicates):,} repeat others"
    print(f"{sum(found.requests.values()):,} requests ({kinds}); {rest}")
    guess = "{image} for an image and {video} for a video".format(**CAPTION_TOKENS)
    print(
        f"about {found.prompt_tokens:,} tokens to read and {found.new_tokens:,} to write "
        f"(a guess of {guess})"
    )
    time, hours = duration(found.gpu_seconds / args.gpus), f"{found.gpu_seconds / 3600:,.1f}"
    rate = "at the paper's rate (--gpus)"
    print(f"about {time} on {args.gpus} A100 {rate}, {hours} GPU hours", flush=True)


def _engine(args: argparse.Namespace) -> Engine:
    if args.endpoint:
        from elva_jax.tools.recaption.endpoint import Endpoint
        from elva_jax.utils.chat_client import Retry

        return Endpoint(
            args.endpoint,
            args.model,
            api_key=os.environ.get("OPENAI_API_KEY", ""),
            max_new_tokens=args.max_new_tokens,
            retry=Retry(timeout=args.timeout, tries=args.tries),
            frames_as=args.frames_as,
        )
    from elva_jax.tools.recaption.local import Local

    return Local.load(
        args.model, device=args.device, dtype=args.dtype, max_new_tokens=args.max_new_tokens
    )
