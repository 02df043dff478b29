"""`elva bench flops`: Table 5's FLOPs, by the paper's accounting and as this code runs."""

from __future__ import annotations

import argparse
from typing import Any

from elva_jax.tools.bench.arguments import counts

HELP = """\
FLOPs of a video of square 336 px frames, a question and an answer of 120 tokens, for four models: encoder-based (CLIP-ViT-L/14-336, MLP,
decoder), encoder-free, with merging, and with merging and hybrid resolution (half of the frames at 112 px), at the paper's retention:
that of its 32, 64 or 128 frames, whichever is nearest.

The paper's accounting counts linear layers alone, and the head on every token. Our own cost is that of the program that runs: attention
counted, the head where a token is predicted, padded lengths, the merging layers of the config; its baseline has the same decoder.
--check compiles the parts of the model for the CPU, without allocating any weights, and sets XLA's own count beside ours; the exit
status is 1 where they differ by more than 3 %.

examples:
  elva bench flops
  elva bench flops --frames 8,16,32,64,128,256 --json flops.json
  elva bench flops --config configs/elva.py:size=1_5b
  elva bench flops --check"""

FRAMES = (32, 64, 128)
TOLERANCE = 0.03  # of XLA's count
GAP = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    parser.add_argument(
        "--frames",
        type=counts,
        metavar="N,N,…",
        help=f"frame counts (default: {','.join(map(str, FRAMES))})",
    )
    parser.add_argument(
        "--config",
        metavar="FILE.py[:ARG]",
        help="a run's config, for its model (default: the paper's 7B; 1.5B for --check)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="set our count beside XLA's instead, in less than a minute",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The comparison of `analysis.table5`, or the check of `analysis.xla`.

    Raises:
      ConfigError: a config that cannot be read, or that names no merging layers.
    """
    if args.check and args.frames:
        args.parser.error("--frames has no part in --check; leave one of them out")
    config = None
    if args.config:
        from elva_jax.config.load import load
        from elva_jax.models.build import config_from_dict

        loaded = load(args.config)
        config = config_from_dict(loaded.model, loaded.teacher)
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
    """The tables, or the table of the check."""
    if "check" in report:
        return _show_check(report)
    return "\n\n".join((*_accounting(report), *_true(report), *_reductions(report)))


def _show_check(report: dict[str, Any]) -> str:
    from elva_jax.tools.bench.table import text_table

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
    return f"Our count of FLOPs against XLA's cost analysis\n\n{table}\n\n{verdict} {100 * TOLERANCE:.0f} %"


def _grouped(report: dict[str, Any], cells) -> list:
    """`cells(row, name)` of every row, with the frame count on the first of each group and a gap between groups."""
    from elva_jax.tools.analysis.paper import VARIANTS

    out, before = [], None
    for row in report["rows"]:
        first = row["frames"] != before
        if first and out:
            out.append(GAP)
        out.append((str(row["frames"]) if first else "", VARIANTS[row["variant"]], *cells(row)))
        before = row["frames"]
    return out


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def _tera(value: float | None) -> str:
    return _number(value, ".1f" if value is None or value >= 10 else ".2f")


def _accounting(report: dict[str, Any]) -> tuple[str, ...]:
    from elva_jax.tools.bench.table import text_table

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
        "Table 5: FLOPs by the paper's accounting, T; visual tokens left on average over the decoder's layers",
        text_table(columns, _grouped(report, cells), words=2),
    )


def _true(report: dict[str, Any]) -> tuple[str, ...]:
    from elva_jax.tools.analysis.table5 import at_retention
    from elva_jax.tools.bench.table import text_table

    def cells(row):
        parts = row["parts_tflops"]
        vision = parts["encoder"] + parts["projector"] + parts["patch_embedding"]
        totals = (row["first_token_tflops"], row["total_tflops"], row["unpadded_tflops"])
        left = f"{100 * row['left']:.1f}" + ("" if at_retention(row) else "*")
        return (
            left,
            "/".join(map(str, row["padded"])),
            *map(_tera, (vision, parts["linear"], parts["attention"], *totals)),
        )

    columns = (
        "frames",
        "model",
        "left, %",
        "padded tokens by segment",
        "vision",
        "linear",
        "attention",
    )
    columns += ("first token", "whole answer", "unpadded")
    out = (
        "Our own cost of the same videos, T; unpadded: the whole answer without padding",
        text_table(columns, _grouped(report, cells), words=2),
    )
    if all(map(at_retention, report["rows"])):
        return out
    return (
        *out,
        "* the nearest to the paper's retention that these merging layers can leave: one patch of every grid position stays.",
    )


def _reductions(report: dict[str, Any]) -> tuple[str, ...]:
    from elva_jax.tools.analysis.table5 import COUNTS, percent_down
    from elva_jax.tools.bench.table import text_table

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
    note = "yes and no: whether the goal is reached. Figures are cut, never rounded up; the last three are our own cost."
    return (
        "Fewer FLOPs than the encoder-based model, %",
        text_table(columns, _grouped(report | {"rows": rows}, cells), words=2),
        note,
    )
