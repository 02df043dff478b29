"""`elva bench flops`: the FLOPs of Table 5, by the paper's accounting and of this code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from elva_jax.tools.bench.arguments import counts
from elva_jax.tools.bench.table import text_table

HELP = """\
Counts the FLOPs of a video of square 336 px frames, a question and an answer of 120 tokens for five
models: encoder-based (CLIP-ViT-L/14-336, MLP, decoder), encoder-free, with merging, with merging
and hybrid resolution (half of the frames at 112 px), and MERV (four encoders, arXiv 2501.01426),
which reads 32 frames at 224 px of any video and is not in the paper's table. The retention is the
paper's at 32, 64 or 128 frames, whichever is nearest.

The paper's accounting counts only linear layers, and the head on every token. Our own cost is that
of the program that runs: with attention, the head only where a token is predicted, padded lengths,
and the merging layers of the config. Its baselines have the same decoder.

--check compiles the parts of the model for the CPU, without allocating weights, and compares XLA's
count with ours. The exit status is 1 if they differ by more than 3 %.

examples:
  elva bench flops
  elva bench flops --frames 8,16,32,64,128,256 --json flops.json
  elva bench flops --config configs/elva.py:size=1_5b
  elva bench flops --check"""

FRAMES = (32, 64, 128)
TOLERANCE = 0.03  # of XLA's count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, text = parser.add_argument, f"frame counts (default: {','.join(map(str, FRAMES))})"
    add("--frames", type=counts, metavar="N,N,…", help=text)
    text = "the config of the model (default: the paper's 7B; 1.5B for --check)"
    add("--config", metavar="FILE.py[:ARG]", help=text)
    text = "instead compare our count with XLA's, in less than a minute"
    add("--check", action="store_true", help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Makes the comparison of `analysis.table5`, or the check of `analysis.xla`.

    Raises:
      ConfigError: a config that cannot be read, or has no merging layers.
    """
    if args.check and args.frames:
        args.parser.error("--frames has no part in --check; leave one of them out")
    config = None
    if args.config:
        from elva_jax.config.load import load, resolve

        config = resolve(load(args.config)).model
    report = {"bench": "flops", "table": 5, "config": args.config}
    if args.check:
        from elva_jax.tools.analysis import paper, xla

        checks = xla.check(config or paper.QWEN2_1_5B, paper.CLIP_L_336)
        rows = [
            {"program": c.program, "flops": c.ours, "xla_flops": c.xla, "deviation": c.deviation}
            for c in checks
        ]
        return report | {"check": rows, "ok": all(abs(c.deviation) <= TOLERANCE for c in checks)}
    from elva_jax.tools.analysis import table5

    return report | table5.compare(config, args.frames or FRAMES)


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    if "check" in report:
        return _show_check(report)
    return "\n\n".join((*_accounting(report), *_true(report), *_reductions(report)))


def _show_check(report: dict[str, Any]) -> str:
    rows = [
        (
            row["program"],
            f"{row['flops'] / 1e9:.3f}",
            f"{row['xla_flops'] / 1e9:.3f}",
            f"{100 * row['deviation']:+.2f}",
        )
        for row in report["check"]
    ]
    table = text_table(("program", "ours, GFLOPs", "XLA, GFLOPs", "deviation, %"), rows)
    verdict = "within" if report["ok"] else "NOT within"
    title = "Our count of FLOPs against XLA's cost analysis"
    return f"{title}\n\n{table}\n\n{verdict} {100 * TOLERANCE:.0f} %"


def _grouped(
    report: dict[str, Any], cells: Callable[[dict[str, Any]], tuple[str, ...]]
) -> list[tuple[str, ...] | None]:
    """The cells of all rows; a group starts with the frame count, None separates groups."""
    from elva_jax.tools.analysis.paper import MODELS

    out: list[tuple[str, ...] | None] = []
    before = None
    for row in report["rows"]:
        first = row["frames"] != before
        if first and out:
            out.append(None)
        out.append((str(row["frames"]) if first else "", MODELS[row["variant"]], *cells(row)))
        before = row["frames"]
    return out


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def _tera(value: float | None) -> str:
    return _number(value, ".1f" if value is None or value >= 10 else ".2f")


def _accounting(report: dict[str, Any]) -> tuple[str, ...]:
    def cells(row):
        deviation = None if row["deviation"] is None else 100 * row["deviation"]
        return (
            f"{100 * row['retention']:.1f}",
            _number(row["paper_tflops"], "d"),
            _tera(row["accounting_tflops"]),
            _number(deviation, "+.2f"),
        )

    columns = ("frames", "model", "left, %", "paper", "its accounting", "deviation, %")
    return (
        "Table 5: FLOPs by the paper's accounting, T; visual tokens left on average over layers",
        text_table(columns, _grouped(report, cells), words=2),
    )


def _true(report: dict[str, Any]) -> tuple[str, ...]:
    from elva_jax.tools.analysis.table5 import at_retention

    def cells(row):
        parts = row["parts_tflops"]
        vision = parts["encoder"] + parts["projector"] + parts["patch_embedding"]
        totals = (row["first_token_tflops"], row["total_tflops"], row["unpadded_tflops"])
        left = f"{100 * row['left']:.1f}" + ("" if at_retention(row) else "*")
        numbers = (vision, parts["linear"], parts["attention"], *totals)
        return left, "/".join(map(str, row["padded"])), *map(_tera, numbers)

    columns = (
        *("frames", "model", "left, %", "padded tokens by block", "vision", "linear"),
        *("attention", "first token", "whole answer", "unpadded"),
    )
    out = (
        "Our own cost of the same videos, T; unpadded: the whole answer without padding",
        text_table(columns, _grouped(report, cells), words=2),
    )
    if all(map(at_retention, report["rows"])):
        return out
    note = "the nearest to the paper's retention that these merging layers can reach"
    return *out, f"* {note}: one patch per grid position remains."


def _reductions(report: dict[str, Any]) -> tuple[str, ...]:
    from elva_jax.tools.analysis.table5 import COUNTS, percent_down

    reached = {(goal["frames"], goal["variant"], goal["counted"]): goal for goal in report["goals"]}

    def cells(row):
        def cell(name):
            goal = reached.get((row["frames"], row["variant"], name))
            verdict = "" if goal is None else " yes" if goal["reached"] else "  no"
            return _number(percent_down(row["reduction"][name])) + verdict

        goal = reached.get((row["frames"], row["variant"], "total"))
        return _number(goal and 100 * goal["goal"], ".0f"), *map(cell, COUNTS)

    columns = ("frames", "model", "goal", *COUNTS.values())
    rows = [row for row in report["rows"] if row["variant"] != "encoder_based"]
    note = "yes, no: whether the goal is reached. Figures are truncated, not rounded; "
    note += "the last three are our own cost."
    return (
        "Fewer FLOPs than the encoder-based model, %",
        text_table(columns, _grouped(report | {"rows": rows}, cells), words=2),
        note,
    )
