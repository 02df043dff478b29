"""`elva bench tokens`: Table 6's token counts."""

from __future__ import annotations

import argparse
from typing import Any

HELP = """\
Lays out the videos of the paper's Table 6 (some square frames at 672 px, some at 224 px) and counts their tokens before any merging.
The exit status is 1 where a count is not the paper's.

example:
  elva bench tokens --json tokens.json"""

PATCH_SIZE = 28  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Counts of the layout that the model reads, beside the paper's."""
    from elva_jax.tools.analysis import paper
    from elva_jax.video.layout import Clip, build_layout
    from elva_jax.video.resize import target_size

    def grid(edge: int) -> tuple[int, int]:
        height, width = target_size(edge, edge, longest_edge=edge, patch_size=PATCH_SIZE)
        return height // PATCH_SIZE, width // PATCH_SIZE

    rows = []
    for (high, low), expected in paper.TABLE6.items():
        grids = [grid(paper.HIGH_EDGE_TABLE6)] * high + [grid(paper.LOW_EDGE_TABLE6)] * low
        rows.append(
            {
                "high": high,
                "low": low,
                "tokens": build_layout([Clip(grids)]).length,
                "paper_tokens": expected,
            }
        )
    return {
        "bench": "tokens",
        "table": 6,
        "rows": rows,
        "ok": all(row["tokens"] == row["paper_tokens"] for row in rows),
    }


def show(report: dict[str, Any]) -> str:
    """The table."""
    from elva_jax.tools.bench.table import text_table

    rows = [
        (str(row["high"]), str(row["low"]), f"{row['tokens']:,}", f"{row['paper_tokens']:,}")
        for row in report["rows"]
    ]
    end = "all as in the paper" if report["ok"] else "NOT as in the paper"
    return f"Table 6: tokens of a video\n\n{text_table(('672 px', '224 px', 'tokens', 'paper'), rows, words=0)}\n\n{end}"
