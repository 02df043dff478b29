"""The options of `elva evaluate` for results of benchmarks, and what they write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from elva_jax.commands import flags
from elva_jax.errors import DataError
from elva_jax.utils.failures import repr_path
from elva_jax.utils.json import save_json

if TYPE_CHECKING:  # its module imports JAX
    from elva_jax.evaluation.benchmarks.base import Evaluation


def add_results(parser: argparse.ArgumentParser) -> None:
    """Adds the options for results of benchmarks; `write_results` reads them.

    --json and --figure are those of `elva evaluate`.
    """
    add = parser.add_argument_group("results of benchmarks").add_argument
    add(
        "--compare",
        nargs=2,
        metavar="FILE.json",
        help="ask nothing: compare what two runs with --tasks wrote to --json, by question",
    )
    add(
        "--csv",
        type=flags.output_file("--csv"),
        metavar="FILE",
        help="write scores by category here",
    )


def write_results(evaluations: Sequence[Evaluation], args: argparse.Namespace) -> None:
    """Prints the table of a run, and writes the files that were asked for.

    Raises:
      ConfigError: a file cannot be written.
    """
    from elva_jax.evaluation.results import csv, files, table

    table.print_scores(evaluations)
    if args.json:
        files.save(evaluations, args.json)
    if args.csv:
        csv.save(evaluations, args.csv)


def compare_files(args: argparse.Namespace) -> int:
    """Compares two JSON files of results, prints the differences, and returns the exit status.

    Raises:
      DataError: a file is no result, or they have no benchmark in common.
      ConfigError: the file of --json cannot be written.
    """
    from elva_jax.evaluation.results import compare_table, files, paired
    from elva_jax.evaluation.results.codec import encode

    a, b = ({e.benchmark: e for e in files.load(path)} for path in args.compare)
    if not (common := [name for name in a if name in b]):
        first, second = map(repr_path, args.compare)
        raise DataError(
            f"{first} and {second}: have no benchmark in common ({', '.join(a)}; {', '.join(b)});"
            " compare runs of the same --tasks"
        )
    found = [one for name in common for one in paired.compare(a[name], b[name])]
    compare_table.print_comparisons(found, tuple(args.compare))
    for path, only in zip(args.compare, (a.keys() - b.keys(), b.keys() - a.keys()), strict=True):
        if only:
            print(f"only in {path}: {', '.join(sorted(only))}")
    if args.json:
        save_json(
            {"a": args.compare[0], "b": args.compare[1], "comparisons": encode(found)}, args.json
        )
    return 0
