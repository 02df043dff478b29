"""`elva generate --input FILE --output FILE`: the rows of a file are answered."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import elva_jax
from elva_jax.commands import flags, many
from elva_jax.utils import numbers, signals

if TYPE_CHECKING:  # its module imports JAX
    from elva_jax.inference.batch_file.run import FileResult

HELP = """\
With --input, the rows of a JSON or JSONL file are answered, and the answers written to --output in
the same order: {"id": …, "video" or "image" or "media": PATH, "prompt": TEXT}, conversations of
LLaVA and ShareGPT, or lines of OpenAI's batches. max_tokens, temperature, top_p, seed, stop,
merging, high_frames and the like in a row take precedence. The same command continues after an
interruption. Status 3: done, but some rows could not be asked, and their lines say why."""
MOST_NAMED = 5  # ignored keys that are shown
ALONE = ("video", "prompt")  # options without a file; with one, those of FILE_OPTIONS
FILE_OPTIONS = ("output", "media_dir", "shard", "batch_size", "workers")


def add_file(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `run` reads."""
    add = parser.add_argument_group("a file of questions").add_argument
    text = "JSON or JSONL with a question per row, instead of --video and --prompt"
    add("--input", type=Path, metavar="FILE", help=text)
    text = "the answers, a JSON line each; FILE.journal beside it is what continues"
    add("--output", type=flags.output_file("--output"), metavar="FILE.jsonl", help=text)
    text = "the folder that media paths are relative to and stay in (default: that of the input)"
    add("--media-dir", metavar="DIR", help=text)
    text = "answer part I (from 0) of N, into a file of its own"
    add("--shard", type=flags.shard, default=(0, 1), metavar="I/N", help=text)
    text = "most rows that are asked together (default: 32)"
    add("--batch-size", type=numbers.ROWS, metavar="N", help=text)
    text = "threads that read media ahead (default: one per core, at most 16)"
    add("--workers", type=numbers.WORKERS, metavar="N", help=text)
    flags.add_processes(parser)


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, before anything is loaded."""
    given = [name for name in ALONE if getattr(args, name)]
    if args.input is None:
        if missing := [f"--{name}" for name in ALONE if name not in given]:
            args.parser.error(f"the following arguments are required: {', '.join(missing)}")
        flags.refuse(args, FILE_OPTIONS, "needs --input")
        return
    if given or args.markers:
        args.parser.error("--input holds the questions; leave out --video, --prompt and --markers")
    if args.json or args.save_merge_map:
        args.parser.error("--json and --save-merge-map are for --video and --prompt, not --input")
    if args.output is None:
        args.parser.error("--input needs --output, the file of the answers")


def run(args: argparse.Namespace) -> int:
    """Answers the rows, and returns the exit status."""
    from elva_jax.evaluation.models import open_elva
    from elva_jax.evaluation.runner.identity import describe_model
    from elva_jax.inference.batch_file import output
    from elva_jax.inference.batch_file.index import QuestionFile
    from elva_jax.inference.batch_file.run import FileConfig, answer_file, shard_path
    from elva_jax.inference.batches.queries import Writing

    signals.name_command("elva generate", terminated=os.EX_TEMPFAIL)  # the same command continues
    path = shard_path(args.output, args.shard)
    output.check(path, args.input)
    writing = Writing(max_new_tokens=args.max_new_tokens, sampling=flags.sampling(args))
    hybrid = flags.hybrid_settings(args)
    process = many.meet(args)
    named = flags.named_merging(args)
    names = [profile.name for profile in named]
    questions = QuestionFile(args.input, args.media_dir, writing, names)
    if questions.ignored:
        listed = ", ".join(sorted(questions.ignored)[:MOST_NAMED])
        print(f"keys that mean nothing here are ignored: {listed}", file=sys.stderr)
    elva_jax.enable_compilation_cache()
    logging.getLogger("elva_jax.inference.long_context").addFilter(many.OnceEach())
    mesh = flags.open_mesh(args)
    with many.together(mesh) as first, many.progress("rows") as report:
        model, origin = open_elva(args.checkpoint, mesh, args.weights, args.prefill_chunk)
        model.add_merging_profiles(*named)
        identity = {"weights_hash": origin["weights_hash"], **describe_model(model)}
        config = FileConfig(
            writing=writing,
            frames=model.hybrid(**hybrid) if hybrid else args.frames,
            merging=args.merging,
            batch_size=args.batch_size or FileConfig().batch_size,
            workers=args.workers,
            shard=args.shard,
            model_name=str(args.checkpoint),
            process=process,
        )
        shown = partial(report, args.input.name) if first else lambda *_: None
        result = answer_file(model, questions, path, identity, config, shown)
        if process[0] == 0 and first:
            print(f"{path}: {result.rows - result.failed} answers")
            _say_failed(result)
    return many.INCOMPLETE if result.failed else 0


def _say_failed(result: FileResult) -> None:
    """Says how many rows were not answered, and why."""
    if result.failed:
        listed = "; ".join(result.reasons)
        more = result.failed - len(result.reasons)
        text = f"{result.failed} rows could not be asked: {listed}"
        print(f"elva generate: {text}{f'; and {more} more' if more else ''}", file=sys.stderr)
