"""The options of `elva evaluate` that ask the questions of benchmarks, and what they do."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import elva_jax
from elva_jax.commands import evaluate_results, flags, many
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers, signals

if TYPE_CHECKING:  # their modules import JAX
    from elva_jax.evaluation.benchmarks.base import Evaluation

RESULTS = "results.json"  # in --output
MOST_NAMED = 5  # unreadable media that are named
BUILT = ("split", "data_dir", "baselines")  # options of a built data set
JUDGE = ("judge", "judge_model", "judge_cache")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `run_tasks` reads."""
    add = parser.add_argument_group("benchmarks").add_argument
    text = "ask these benchmarks, such as videomme,mvbench, instead of a built data set"
    add("--tasks", type=names, metavar="NAME,…", help=text)
    text = "local copies: a folder per benchmark, or that of the only one; with --data FILE.json,"
    text += " the folder of its media (default: that of the file)"
    add("--data-root", metavar="DIR", help=text)
    text = "files may be links that lead out of the benchmark's folder and --data-root (default:"
    text += " such a video counts as unreadable; links into the blobs of the same cache of the"
    text += " Hugging Face hub are followed)"
    add("--follow-links", action="store_true", default=None, help=text)
    text = "journals of all answers and results.json; the same command continues there"
    add("--output", type=flags.output_folder("--output"), metavar="DIR", help=text)
    text = "generated, likelihood (of the options' texts), letter (likeliest letter); several"
    text += " separated by commas (default: all that the benchmark's kind allows)"
    add("--answers", type=names, metavar="WAY,…", help=text)
    text = "most questions that are asked together (default: 32)"
    add("--batch-size", type=numbers.ROWS, metavar="N", help=text)
    text = "longest written answer (default: the benchmark's)"
    add("--max-new-tokens", type=numbers.TOKENS, metavar="N", help=text)
    text = "threads that read media ahead (default: one per core, at most 16)"
    add("--workers", type=numbers.WORKERS, metavar="N", help=text)
    flags.add_processes(parser)
    add_judge(parser)


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `judge_of` reads."""
    add = parser.add_argument_group(
        "a judge of open answers (default: exact match and token F1)"
    ).add_argument
    text = "OpenAI-compatible endpoint, such as http://localhost:8000/v1; OPENAI_API_KEY holds its"
    text += " key"
    add("--judge", metavar="URL", help=text)
    text = "the name under which the endpoint knows the model"
    add("--judge-model", metavar="NAME", help=text)
    text = "replies are kept here, for all runs that name the same folder (default: OUTPUT/judge)"
    add("--judge-cache", type=flags.output_folder("--judge-cache"), metavar="DIR", help=text)


def judge_of(args: argparse.Namespace) -> elva_jax.JudgeConfig | None:
    """The judge that the options name.

    Raises:
      ConfigError: they do not name it whole.
    """
    if not args.judge:
        if args.judge_model or args.judge_cache:
            raise ConfigError("--judge-model and --judge-cache need --judge")
        return None
    if not args.judge_model:
        raise ConfigError("--judge needs --judge-model, the name that the endpoint knows")
    cache = args.judge_cache or (Path(args.output) / "judge" if args.output else None)
    return elva_jax.JudgeConfig(endpoint=args.judge, model=args.judge_model, cache=cache)


def refuse_tasks_options(args: argparse.Namespace) -> None:
    """Refuses options of benchmarks where none is asked."""
    names = ("data_root", "follow_links", "output", "answers", "workers", *JUDGE)
    flags.refuse(args, names, "needs --tasks, or --data FILE.json")


def is_own(args: argparse.Namespace) -> bool:
    """Whether --data names a file of one's own questions, not a built data set."""
    return Path(args.data).suffix.lower() in (".json", ".jsonl")


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas; for `type=` of an option."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def run_tasks(args: argparse.Namespace) -> int:
    """Asks the benchmarks, writes their results, and returns the exit status."""
    own = is_own(args)
    if own and args.tasks is not None:
        args.parser.error("--tasks and --data FILE.json are asked apart; give one of them")
    if not own:
        flags.refuse(args, ["data"], "and --tasks are asked apart; give one of them")
    flags.refuse(args, BUILT, "is for --data NAME, a built data set")
    if not own and not args.data_root:
        args.parser.error("--tasks needs --data-root, the folder with the benchmarks' files")
    if args.output:  # everything is saved, and the same command continues
        signals.name_command("elva evaluate", terminated=os.EX_TEMPFAIL)
    index, count = many.meet(args)
    if count > 1 and not args.output:
        args.parser.error("several processes need --output, the folder where they share answers")
    config = elva_jax.BenchmarkConfig(
        answers=args.answers,
        num_frames=args.frames,
        hybrid=flags.hybrid_settings(args),
        merging=args.merging,
        max_new_tokens=args.max_new_tokens,
        limit=args.limit,
        batch_size=args.batch_size or elva_jax.BenchmarkConfig().batch_size,
        workers=args.workers,
        judge=judge_of(args),
        weights=args.weights,
        prefill_chunk=args.prefill_chunk,
        follow_links=bool(args.follow_links),
    )
    elva_jax.enable_compilation_cache()
    logging.getLogger("elva_jax.inference.long_context").addFilter(many.OnceEach())
    mesh = flags.open_mesh(args)
    with many.together(mesh) as first, many.progress() as report:
        evaluations = elva_jax.evaluate_benchmarks(
            args.checkpoint,
            [elva_jax.load_own(args.data, args.data_root)] if own else args.tasks,
            args.data_root or ".",
            config,
            output=args.output,
            process=(index, count),
            mesh=mesh,
            progress=report if first else None,
        )
        if writes := index == 0 and first:
            _write(evaluations, args)
    from elva_jax.evaluation.runner.tasks import resolve

    wanted = 1 if own else len(resolve(args.tasks))
    status = _status(evaluations, say=writes)
    return (
        many.INCOMPLETE if len(evaluations) < wanted else status
    )  # a log line names those left out


def _write(evaluations: Sequence[Evaluation], args: argparse.Namespace) -> None:
    """Writes the results to --output, and shows them."""
    from elva_jax.evaluation.results import files, submission

    if args.output:
        files.save(evaluations, Path(args.output) / RESULTS, "--output")
        for path in submission.save(evaluations, args.output):
            print(f"for the benchmark's server: {path}", file=sys.stderr)
    evaluate_results.write_results(evaluations, args)


def _status(evaluations: Sequence[Evaluation], *, say: bool) -> int:
    """The exit status; says which media could not be read, and why answers are not judged."""
    from elva_jax.evaluation.runner.run import unjudged, unreadable

    status = 0
    for evaluation in evaluations:
        for reasons, text in (
            (
                unreadable(evaluation, fits=True),
                "questions could not be asked, and are in no score",
            ),
            (unreadable(evaluation, fits=False), "questions are too long, and count as wrong"),
            (unjudged(evaluation), "requests to the judge failed; the same command asks again"),
        ):
            if not reasons:
                continue
            status = many.INCOMPLETE
            if say:
                say_reasons(f"{evaluation.benchmark}: {sum(reasons.values())} {text}", reasons)
    return status


def say_reasons(message: str, reasons: Collection[str]) -> None:
    """Prints a message and the first reasons for it in a line on standard error."""
    from elva_jax.evaluation.columns import printable

    listed = "; ".join(list(reasons)[:MOST_NAMED])
    more = f"; and {len(reasons) - MOST_NAMED} more" * (len(reasons) > MOST_NAMED)
    print(printable(f"{message}: {listed}{more}"), file=sys.stderr)
