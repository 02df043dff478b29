"""`elva bench merv`: parameters and multiply-accumulates of MERV, beside its paper's."""

from __future__ import annotations

import argparse
from typing import Any

from elva_jax.tools.bench.table import text_table
from elva_jax.utils import numbers

HELP = """\
Counts the parameters of MERV (arXiv 2501.01426) by part, and the multiply-accumulates of one
forward pass with each of its four fusions, as its paper does: every block of the encoders, the
projections that a published checkpoint stores without using, the head on every token, and
attention without the causal mask. The paper's text has random characters, and its length is not
written; by default it is what the paper's sums solve for. `elva bench flops` has MERV in ELVA's
accounting, beside ELVA and the encoder-based model.

examples:
  elva bench merv
  elva bench merv --text-tokens 64 --json merv.json
  elva bench merv --config configs/merv.py:recipe=frozen,llm=qwen2_7b"""

UNUSED = "unused "  # of a part that a published checkpoint holds and no model has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, text = parser.add_argument, "a config of MERV (default: the paper's, on LLaMA-2-7B)"
    add("--config", metavar="FILE.py[:ARG]", help=text)
    text = "tokens of text (default: what the paper's cells solve for)"
    add("--text-tokens", type=numbers.TOKENS, metavar="N", help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Counts parameters, and multiply-accumulates by fusion.

    Raises:
      ConfigError: a config that cannot be read, or is none of MERV.
    """
    from elva_jax.tools.analysis import merv

    model = merv.MERV_7B if args.config is None else _model(args.config)
    cells = []
    for fusion, cell in merv.CELLS.items():
        config = merv.with_fusion(model, fusion)
        text = args.text_tokens or cell.text_tokens
        parts = merv.published_macs(config, text)
        row = {"fusion": fusion, "text_tokens": text, "macs": parts}
        if args.config is None:
            row |= {"paper_tera": cell.tera, "paper_accuracy": cell.accuracy}
        cells.append(row)
    return {
        "bench": "merv",
        "config": args.config,
        "fusion": model.merv.fusion,
        "encoders": [name for name, _ in model.encoders],
        "parameters": merv.parameters(model),
        "cells": cells,
    }


def _model(config: str) -> Any:
    from elva_jax.config.load import load, resolve
    from elva_jax.errors import ConfigError

    model = resolve(load(config)).model
    if not model.encoders:
        raise ConfigError(
            f"{config}: model.patch_embed is {model.patch_embed}; give a config of MERV, such as"
            " configs/merv.py"
        )
    return model


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    note = "unused: stored in a published checkpoint, without a part in its result; left out here."
    tables = (
        f"MERV: parameters by part, fusion {report['fusion']}",
        text_table(("part", "parameters, M"), _parameters(report)),
        note,
        "Multiply-accumulates of one forward pass as its paper counts them, T",
        text_table(_columns(report), list(map(_cells, report["cells"]))),
    )
    return "\n\n".join(tables)


def _parameters(report: dict[str, Any]) -> list[tuple[str, ...] | None]:
    parts: dict[str, int] = report["parameters"]
    held = {name: count for name, count in parts.items() if not name.startswith(UNUSED)}
    rows: list[tuple[str, ...] | None] = [
        (name, f"{count / 1e6:,.2f}") for name, count in held.items()
    ]
    rows += [("all", f"{sum(held.values()) / 1e6:,.2f}"), None]
    unused = [name for name in parts if name not in held]
    return [*rows, *((name, f"{parts[name] / 1e6:,.2f}") for name in unused)]


def _columns(report: dict[str, Any]) -> tuple[str, ...]:
    return "fusion", "text tokens", *report["cells"][0]["macs"], "paper", "paper's accuracy, %"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    macs = {name: count / 1e12 for name, count in row["macs"].items()}
    small = {name: f"{macs[name]:.5f}" for name in ("projectors", "fusion")}
    total = {"total": f"{macs['total']:.2f}"}
    shown = {name: f"{count:.3f}" for name, count in macs.items()} | small | total
    paper = [f"{row[key]:.2f}" if key in row else "–" for key in ("paper_tera", "paper_accuracy")]
    return row["fusion"], str(row["text_tokens"]), *shown.values(), *paper
