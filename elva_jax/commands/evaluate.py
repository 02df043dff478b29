"""The sub-command `elva evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import elva_jax
from elva_jax.commands import evaluate_results, evaluate_tasks, flags, many
from elva_jax.evaluation import report
from elva_jax.utils.json import save_json

HELP = """\
Measures a checkpoint on a split of a data set: exact match on open questions and multiple choice by
likelihood, per family of questions, beside the blind, any-object and single-frame baselines.

With --tasks it asks benchmarks instead, and with --data FILE.json one's own questions. Status 3:
done, but the media of some questions, which are in no score, could not be read, or a judge failed.

examples:
  elva evaluate --checkpoint runs/tiny --split test --json runs/tiny/test.json
  elva evaluate --checkpoint runs/7b --tasks videomme,mvbench --data-root data --output scores/7b
  elva evaluate --checkpoint runs/7b --data own.jsonl --data-root videos --json own.scores.json
  elva evaluate --compare a.json b.json"""


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds it with `command(name, text, run)`, which makes a sub-command of `elva`."""
    evaluate = command("evaluate", HELP, run)
    flags.add_checkpoint(evaluate, required=False)  # --compare needs none
    add, default = evaluate.add_argument, "(default: %(default)s)"
    text = "built data set with questions and options, or a JSON or JSONL file of one's own"
    text += f" questions {default}"
    add("--data", default="moving_shapes/easy", metavar="NAME", help=text)
    add("--data-dir", metavar="DIR", help="where data sets are built (default: as in the run)")
    add("--split", default="test", help=f"split of the data set {default}")
    add(
        "--limit",
        type=flags.positive,
        metavar="N",
        help="use the first N videos, or questions with --tasks",
    )
    flags.add_frames(evaluate)
    flags.add_no_merging(evaluate)
    flags.add_mesh(evaluate)
    flags.add_one_mesh(evaluate)
    flags.add_weights(evaluate)
    flags.add_prefill_chunk(evaluate)
    text = "skip the three baselines"
    add("--no-baselines", dest="baselines", action="store_false", help=text)
    add("--json", type=flags.output_file("--json"), metavar="FILE", help="write all numbers here")
    add(
        "--figure",
        type=flags.output_file("--figure"),
        metavar="FILE.png",
        help="plot the scores here",
    )
    evaluate_tasks.add_tasks(evaluate)
    evaluate_results.add_results(evaluate)


@flags.library_notices()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Runs the command and returns the exit status."""
    if not args.html:
        flags.refuse(args, ["html_frames"], "needs --html")
    if args.compare:
        return evaluate_results.compare_files(args)
    if args.show:
        return evaluate_results.show_file(args)
    if not args.checkpoint:
        args.parser.error("the following arguments are required: --checkpoint")
    if args.tasks is not None or evaluate_tasks.is_own(args):
        return evaluate_tasks.run_tasks(args)
    evaluate_tasks.refuse_tasks_options(args)
    evaluate_results.refuse_results_options(args)
    default = elva_jax.EvalConfig()
    config = elva_jax.EvalConfig(
        dataset=args.data,
        split=args.split,
        data_dir=args.data_dir,
        limit=args.limit,
        num_frames=args.frames,
        hybrid=flags.hybrid_settings(args),
        merging=args.merging,
        batch_size=args.batch_size or default.batch_size,
        max_new_tokens=args.max_new_tokens or default.max_new_tokens,
        baselines=args.baselines,
        weights=args.weights,
        prefill_chunk=args.prefill_chunk,
    )
    many.join_mesh(args, "--tasks, or --data FILE.json")
    elva_jax.enable_compilation_cache()
    mesh = flags.open_mesh(args)
    with many.together(mesh) as first:
        result = elva_jax.evaluate(args.checkpoint, config, mesh=mesh).to_dict()
        report.table(result)
        if args.json and first:
            save_json(result, args.json)
        if args.figure and first:
            report.figure(result, args.figure)
        unreadable = result["data"]["unreadable"]
        if unreadable and first:
            evaluate_tasks.say_reasons(f"{len(unreadable)} videos could not be read", unreadable)
    return many.INCOMPLETE if unreadable else 0
