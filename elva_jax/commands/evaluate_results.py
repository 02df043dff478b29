"""The options of `elva evaluate` for results of benchmarks, and what they write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from elva_jax.commands import flags
from elva_jax.evaluation.benchmarks.base import Evaluation
from elva_jax.evaluation.results import csv, files, table


def add_results(parser: argparse.ArgumentParser) -> None:
    """Adds the options for results of benchmarks; `write_results` reads them.

    --json and --figure are those of `elva evaluate`.
    """
    add = parser.add_argument_group("results of benchmarks").add_argument
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
    table.print_scores(evaluations)
    if args.json:
        files.save(evaluations, args.json)
    if args.csv:
        csv.save(evaluations, args.csv)
