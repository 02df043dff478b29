"""The options of `elva evaluate` for results of benchmarks, and what they write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elva_jax.commands import flags
from elva_jax.errors import DataError
from elva_jax.evaluation.columns import printable
from elva_jax.utils.failures import repr_path
from elva_jax.utils.json import save_json

if TYPE_CHECKING:  # its module imports JAX
    from elva_jax.evaluation.benchmarks.base import Evaluation


def add_results(parser: argparse.ArgumentParser) -> None:
    """Adds the options for results of benchmarks; `write_results` reads them.

    --json and --figure are those of `elva evaluate`.
    """
    add = parser.add_argument_group("results of benchmarks").add_argument
    text = "write scores by category here"
    add("--csv", type=flags.output_file("--csv"), metavar="FILE", help=text)
    text = "write a page with every question, answer and frames here; it loads nothing"
    add("--html", type=flags.output_file("--html"), metavar="FILE", help=text)
    text = "videos and images whose frames are in the page (default: %(default)s)"
    add("--html-frames", type=flags.not_negative, default=100, metavar="N", help=text)
    text = "ask nothing: show what a run with --tasks wrote to --json, and write other files of it;"
    text += " of its media, --html shows those below --data-root"
    add("--show", metavar="FILE.json", help=text)
    text = "ask nothing: compare what two runs with --tasks wrote to --json, by question"
    add("--compare", nargs=2, metavar="FILE.json", help=text)


def _refuse_others(args: argparse.Namespace, option: str, uses: Sequence[str]) -> None:
    """Refuses options beside one that asks nothing, except those that it uses."""
    others = vars(args).keys() - {"command", option, *uses}
    flags.refuse(args, sorted(others), f"means nothing with --{option}")


def refuse_results_options(args: argparse.Namespace) -> None:
    """Refuses options of benchmarks' results where no benchmark is asked."""
    flags.refuse(args, ("csv", "html"), "needs --tasks or --show")


def write_results(
    evaluations: Sequence[Evaluation],
    args: argparse.Namespace,
    folders: Sequence[Path] | None = None,
) -> None:
    """Prints the table of a run, and writes the files that were asked for.

    Args:
      evaluations: one per benchmark.
      args: those of `add_results`.
      folders: only media below one of them are shown; None: all.

    Raises:
      ConfigError: a file cannot be written.
    """
    from elva_jax.evaluation.results import csv, files, html, plot, table

    table.print_scores(evaluations)
    if args.json:
        files.save(evaluations, args.json)
    if args.csv:
        csv.save(evaluations, args.csv)
    if args.html:
        html.save(evaluations, args.html, frames=args.html_frames, folders=folders)
    if args.figure:
        plot.save(evaluations, args.figure)


def show_file(args: argparse.Namespace) -> int:
    """Shows the JSON file of a run, writes other files of it, and returns the exit status.

    Raises:
      DataError: the file is no result.
      ConfigError: a file cannot be written.
    """
    from elva_jax.evaluation.results import files

    _refuse_others(args, "show", ("json", "csv", "html", "html_frames", "figure", "data_root"))
    folders = [Path(args.data_root)] if args.data_root else []
    if args.html and args.html_frames and not folders:
        print(
            "the page has no frames: --show reads media only below --data-root, the folder of the"
            " media that may be shown",
            file=sys.stderr,
        )
    write_results(files.load(args.show), args, folders)
    return 0


def compare_files(args: argparse.Namespace) -> int:
    """Compares two JSON files of results, prints the differences, and returns the exit status.

    Raises:
      DataError: a file is no result, or they have no benchmark in common.
      ConfigError: the file of --json cannot be written.
    """
    from elva_jax.evaluation.benchmarks import own
    from elva_jax.evaluation.benchmarks.registry import BENCHMARKS
    from elva_jax.evaluation.results import compare_table, files, paired
    from elva_jax.evaluation.results.codec import encode

    _refuse_others(args, "compare", ("json",))
    a, b = ({e.benchmark: e for e in files.load(path)} for path in args.compare)
    if not (common := [name for name in a if name in b]):
        first, second = map(repr_path, args.compare)
        names = printable(f"{', '.join(a)}; {', '.join(b)}")
        raise DataError(
            f"{first} and {second}: have no benchmark in common ({names});"
            " compare runs of the same --tasks"
        )
    scores = {name: benchmark.score for name, benchmark in BENCHMARKS.items()}
    scores |= {name: own.score for name in common if name.startswith("own_")}  # --data FILE.json
    tallies = {name: benchmark.tally for name, benchmark in BENCHMARKS.items()}
    found = [
        one
        for name in common
        for one in paired.compare(a[name], b[name], scores.get(name), tally=tallies.get(name))
    ]
    compare_table.print_comparisons(found, tuple(args.compare))
    for path, only in zip(args.compare, (a.keys() - b.keys(), b.keys() - a.keys()), strict=True):
        if only:
            print(printable(f"only in {path}: {', '.join(sorted(only))}"))
    if args.json:
        save_json(
            {"a": args.compare[0], "b": args.compare[1], "comparisons": encode(found)}, args.json
        )
    return 0
