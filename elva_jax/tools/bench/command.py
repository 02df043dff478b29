"""The sub-commands of `elva bench`: this implementation beside the paper's efficiency tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from elva_jax.commands import flags
from elva_jax.tools.bench import (
    attention,
    evaluate,
    flops,
    fusion,
    load,
    merge,
    merv,
    packing,
    params,
    pipeline,
    pytorch,
    quantization,
    serve,
    tokens,
    train,
    ttft,
)
from elva_jax.tools.tables.command import TABLES
from elva_jax.utils.json import save_json

HELP = """\
Compares this implementation with the tables of the paper, costs and accuracies, and with PyTorch.
Each bench prints a table; --json FILE writes all of its numbers.

examples:
  elva bench params
  elva bench tokens --json tokens.json
  elva bench flops --frames 32,64,128,256
  elva bench flops --config configs/elva.py:size=1_5b
  elva bench flops --check
  elva bench packing
  elva bench merv
  elva bench fusion --checkpoint runs/merv --videos contents --figure fusion.png
  elva bench ttft --frames 8,32,128 --figure ttft.png
  elva bench pytorch
  elva bench table1 --checkpoint ELVA-7B=runs/7b --data-root benchmarks"""


class Bench(Protocol):
    """The interface of a bench's module.

    It imports heavy libraries in `run` only, because `elva --help` imports it.
    """

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags."""

    def run(self, args: argparse.Namespace) -> dict[str, Any]:
        """Measures; a report with `ok` False makes the exit status 1."""

    def show(self, report: dict[str, Any]) -> str:
        """Formats the report."""


# The only list of benches: name, summary, module.
BENCHES: tuple[tuple[str, str, Bench], ...] = (
    ("params", "parameters of the patch embedding (Table 3)", params),
    ("tokens", "tokens of hybrid-resolution videos (Table 6)", tokens),
    ("flops", "FLOPs of a video and its answer (Table 5), and their check against XLA", flops),
    ("merv", "parameters and multiply-accumulates of MERV, beside its paper's", merv),
    ("fusion", "weights of MERV's encoders by content of the video", fusion),
    ("ttft", "time to the first token, peak memory and decoding speed by frames (Table 5)", ttft),
    ("load", "memory and time of opening a model, beside its size and reading", load),
    ("train", "speed and memory of a training step, beside PyTorch's", train),
    ("packing", "fill of the packed rows of a fine-tuning mix", packing),
    ("attention", "time and memory of attention, beside PyTorch's", attention),
    ("merge", "cost of a merging layer as a share of a decoder layer", merge),
    ("evaluate", "questions per second of an evaluation, beside one-by-one asking", evaluate),
    ("serve", "tokens per second and time to the first token of continuous batching", serve),
    ("quantization", "what int8 and int4 weights change in a run's answers", quantization),
    ("pipeline", "speed and memory of the input pipeline, beside bare PyAV", pipeline),
    ("pytorch", "prefill and decoding beside transformers' Qwen2 in PyTorch", pytorch),
    *TABLES,
)


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `bench` with `command(name, text, run, under, summary)`, which makes a sub-command."""
    parser = command("bench", HELP, None)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    for name, summary, module in BENCHES:
        parser = command(name, module.HELP, partial(_run, module), benches, summary)
        module.add_arguments(parser)
        kind, text = flags.output_file("--json"), "write all numbers here"
        parser.add_argument("--json", type=kind, metavar="FILE", help=text)


def _run(module: Bench, args: argparse.Namespace, overrides: list[str]) -> int:
    args.overrides = overrides
    report = module.run(args)
    print(module.show(report))
    if args.json:
        save_json(report, args.json)
    return 0 if report.get("ok", True) else 1
