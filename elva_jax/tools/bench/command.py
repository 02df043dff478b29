"""The sub-commands of `elva bench`: the paper's efficiency tables, ours beside them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from elva_jax.tools.bench import (
    attention,
    flops,
    merge,
    packing,
    params,
    pipeline,
    pytorch,
    tokens,
    ttft,
)

HELP = """\
Sets this implementation beside the paper's tables of efficiency. Each bench prints a table; --json FILE writes all of its numbers.

examples:
  elva bench params
  elva bench tokens --json tokens.json
  elva bench flops --frames 32,64,128,256
  elva bench flops --config configs/elva.py:size=1_5b
  elva bench flops --check
  elva bench packing
  elva bench ttft --frames 8,32,128 --figure ttft.png
  elva bench pytorch"""

# Name, one line about it, and the module: its HELP, add_arguments(parser), run(args) -> JSON-able report, show(report) -> text.
# A report whose `ok` is False makes the exit status 1.
BENCHES: tuple[tuple[str, str, ModuleType], ...] = (
    ("params", "parameters of the patch embedding (Table 3)", params),
    ("tokens", "tokens of hybrid-resolution videos (Table 6)", tokens),
    ("flops", "FLOPs of a video and its answer (Table 5), and their check against XLA", flops),
    ("ttft", "time to the first token, peak memory and decoding speed by frames (Table 5)", ttft),
    ("packing", "how full the rows of a fine-tuning mix are", packing),
    ("attention", "attention beside PyTorch's, time and memory", attention),
    ("merge", "cost of a merging layer as a share of a decoder layer", merge),
    (
        "pipeline",
        "the input pipeline beside bare PyAV, its memory, and the cores that feed a training step",
        pipeline,
    ),
    ("pytorch", "prefill and decoding beside transformers' Qwen2 in PyTorch", pytorch),
)


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `bench` with `command(name, summary, text, run, under)`, which makes a sub-command of `elva`, or of another one."""
    benches = command(
        "bench",
        "parameters, tokens, FLOPs, time and memory, beside the paper's and PyTorch's",
        HELP,
        None,
    ).add_subparsers(dest="bench", required=True, metavar="BENCH")
    for name, summary, module in BENCHES:
        parser = command(name, summary, module.HELP, partial(_run, module), benches)
        module.add_arguments(parser)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")


def _run(module: ModuleType, args: argparse.Namespace, _) -> int:
    from elva_jax.utils.json import save_json

    report = module.run(args)
    print(module.show(report))
    if args.json:
        save_json(report, args.json)
    return 0 if report.get("ok", True) else 1
