"""`elva bench params`: the parameter counts of Table 3."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from elva_jax.tools.bench.table import text_table

HELP = """\
Counts the parameters of the naive and of the video patch embedding at the sizes of Qwen2-1.5B and
Qwen2-7B, from the model's parameter tree, without allocating them. The paper's Table 3 has the 7B
size in whole millions.

example:
  elva bench params --json params.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This bench has no flags."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Counts parameters by size and kind of patch embedding."""
    from elva_jax.tools.analysis import paper
    from elva_jax.tools.analysis.parameters import count_parameters

    rows = []
    kind: Any
    for size, decoder in (("1.5B", paper.QWEN2_1_5B), ("7B", paper.QWEN2_7B)):
        for kind, cell in paper.TABLE3.items():
            counts = count_parameters(dataclasses.replace(decoder, patch_embed=kind))
            millions = cell.millions if size == "7B" else None
            rows.append({"size": size, "kind": kind, "paper_millions": millions, **counts})
    return {"bench": "params", "table": 3, "rows": rows}


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    rows = [
        (
            row["size"],
            row["kind"],
            f"{row['patch_embed'] / 1e6:.2f}",
            "–" if row["paper_millions"] is None else str(row["paper_millions"]),
            f"{(row['total'] - row['patch_embed']) / 1e6:.1f}",
            f"{row['total'] / 1e6:.1f}",
        )
        for row in report["rows"]
    ]
    columns = ("size", "patch embedding", "parameters, M", "paper, M", "decoder, M", "all, M")
    return "Table 3: parameters of the patch embedding\n\n" + text_table(columns, rows, words=2)
