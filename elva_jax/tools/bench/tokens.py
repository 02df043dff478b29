"""`elva bench tokens`: the token counts of Table 6."""

from __future__ import annotations

import argparse
from typing import Any

from elva_jax.tools.bench.table import text_table

HELP = """\
Lays out the videos of the paper's Table 6 (square frames, some at 672 px and some at 224 px) and
counts their tokens before any merging. The exit status is 1 if a count differs from the paper's.

example:
  elva bench tokens --json tokens.json"""

PATCH_SIZE = 28  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This bench has no flags."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Counts the tokens of the layouts that the model reads."""
    from elva_jax.tools.analysis import paper
    from elva_jax.video.layout import Clip, build_layout
    from elva_jax.video.resize import target_size

    def grid(edge: int) -> tuple[int, int]:
        height, width = target_size(edge, edge, longest_edge=edge, patch_size=PATCH_SIZE)
        return height // PATCH_SIZE, width // PATCH_SIZE

    rows = []
    for (high, low), expected in paper.TABLE6.items():
        grids = [grid(paper.HIGH_EDGE_TABLE6)] * high + [grid(paper.LOW_EDGE_TABLE6)] * low
        tokens = build_layout([Clip(grids)]).length
        rows.append({"high": high, "low": low, "tokens": tokens, "paper_tokens": expected})
    same = all(row["tokens"] == row["paper_tokens"] for row in rows)
    return {"bench": "tokens", "table": 6, "rows": rows, "ok": same}


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    rows = [
        (str(row["high"]), str(row["low"]), f"{row['tokens']:,}", f"{row['paper_tokens']:,}")
        for row in report["rows"]
    ]
    table = text_table(("672 px", "224 px", "tokens", "paper"), rows, words=0)
    end = "all as in the paper" if report["ok"] else "NOT as in the paper"
    return f"Table 6: tokens of a video\n\n{table}\n\n{end}"
