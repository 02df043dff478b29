"""`elva bench ttft`: time to the first token, peak memory and decoding speed by frames, for four models (Table 5)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elva_jax.tools.bench.arguments import add_dtype, add_repeats, counts, dtype_of

HELP = """\
Runs an encoder-based Video-LLM, ELVA without merging, with it, and with hybrid resolution too (half of the frames low), on the same
videos, with random weights and one decoder, in one process and in turn. Time runs from patches in the host's memory to the first token.

A small model on a CPU, 1.5B on a GPU, or what --size says. Videos have a known redundancy: from frame to frame all patches stay
(static), or a quarter (slow), half (typical), three quarters (fast) or all of them (noise) are new.

examples:
  elva bench ttft --frames 8,32,128
  elva bench ttft --size 7b --content typical --figure ttft.png --json ttft.json"""

CONTENT_FRAMES = 32  # of the videos that differ in redundancy only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    parser.add_argument(
        "--frames",
        type=counts,
        default="8,16,32,64,128,256",
        metavar="N,N,…",
        help="frame counts (default: %(default)s)",
    )
    parser.add_argument(
        "--size", choices=["small", "1_5b", "7b"], help="default: small on a CPU, 1_5b on a GPU"
    )
    parser.add_argument(
        "--content",
        choices=["static", "slow", "typical", "fast", "noise"],
        default="typical",
        help="of the videos (default: %(default)s)",
    )
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=32,
        metavar="N",
        help="tokens whose decoding is timed (default: %(default)s)",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the times here")
    add_dtype(parser)
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all models at all frame counts, then those that merge on every content at 32 frames."""
    import jax

    from elva_jax.tools.analysis.paper import VARIANTS
    from elva_jax.tools.bench.random_model import CONTENT
    from elva_jax.tools.bench.timing import machine

    size = args.size or ("1_5b" if jax.default_backend() == "gpu" else "small")
    models = _models(size, dtype_of(args))
    cases = [(variant, frames, args.content) for frames in args.frames for variant in VARIANTS]
    by_content = [
        (variant, CONTENT_FRAMES, content)
        for content in CONTENT
        for variant in ("encoder_free", "merge", "merge_hr")
    ]
    # By tokens, because on a GPU only a new high-water mark can be told.
    ordered = sorted(
        dict.fromkeys(cases + by_content), key=lambda case: models[case[0]].tokens(case[1])
    )
    results = {
        case: models[case[0]].measure(*case[1:], args.new_tokens, args.repeats) for case in ordered
    }
    report = {
        "machine": machine(),
        "size": size,
        "dtype": dtype_of(args),
        "content": args.content,
        "rows": [_row(results, case) for case in cases],
        "by_content": [_row(results, case) for case in by_content],
    }
    if args.figure:
        _draw(report, args.figure)
    return report


def _models(size: str, dtype: str) -> dict[str, Any]:
    from elva_jax.tools.bench.video_llm import paper_models, small_models

    return small_models(dtype) if size == "small" else paper_models(size, dtype)


def _row(results: dict, case: tuple[str, int, str]) -> dict[str, Any]:
    """One case with its reductions against the encoder-based model on as many frames, in per cent."""
    variant, frames, content = case
    base, result = results.get(("encoder_based", frames, content)), results[case]
    row = {"variant": variant, "frames": frames, "content": content} | result
    if base and variant != "encoder_based":
        row["ttft_reduction"] = 100 * (1 - result["ttft"]["median"] / base["ttft"]["median"])
        if base["peak_bytes"] and result["peak_bytes"]:
            row["memory_reduction"] = 100 * (1 - result["peak_bytes"] / base["peak_bytes"])
    return row


def show(report: dict[str, Any]) -> str:
    """The two tables."""
    from elva_jax.tools.analysis.paper import TABLE5, VARIANTS
    from elva_jax.tools.bench.table import text_table
    from elva_jax.tools.bench.timing import Spread, milliseconds

    def cells(row: dict[str, Any]) -> list[str]:
        paper = TABLE5.get(row["frames"], {})
        theirs = ["-", "-"]
        if row["variant"] in paper and "ttft_reduction" in row:
            base, cell = paper["encoder_based"], paper[row["variant"]]
            theirs = [
                f"{100 * (1 - cell.ttft_s / base.ttft_s):.1f}",
                f"{100 * (1 - cell.memory_gb / base.memory_gb):.1f}",
            ]
        less = [
            f"{row[key]:.1f}" if key in row else "-"
            for key in ("ttft_reduction", "memory_reduction")
        ]
        peak = f"{row['peak_bytes'] / 2**20:,.0f}" if row["peak_bytes"] else "-"
        return [
            f"{row['tokens']:,}",
            f"{100 * row['kept']:.1f}",
            milliseconds(Spread(**row["ttft"])),
            less[0],
            theirs[0],
            peak,
            less[1],
            theirs[1],
            f"{row['tokens_per_second']:.1f}",
        ]

    measured = [
        "tokens",
        "left %",
        "first token ms",
        "less by %",
        "paper %",
        "peak MiB",
        "less by %",
        "paper %",
        "tokens/s",
    ]
    groups: list[list[str] | None] = []
    for row in report["rows"]:
        if groups and row["variant"] == next(iter(VARIANTS)):
            groups.append(None)
        groups.append([str(row["frames"]), VARIANTS[row["variant"]], *cells(row)])
    contents = [
        [row["content"], VARIANTS[row["variant"]], *cells(row)] for row in report["by_content"]
    ]
    return "\n".join(
        [
            f"{report['machine']['device']}, {report['size']} model, {report['dtype']}, {report['content']} video",
            text_table(["frames", "model", *measured], groups, words=2),
            "",
            f"{CONTENT_FRAMES} frames, by how much of the video is new from frame to frame",
            text_table(["content", "model", *measured], contents, words=2),
        ]
    )


def _draw(report: dict[str, Any], path: Path) -> None:
    """Time to the first token over frames, a line a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from elva_jax.tools.analysis.paper import VARIANTS

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for variant, name in VARIANTS.items():
        rows = [row for row in report["rows"] if row["variant"] == variant]
        axes.loglog(
            [row["frames"] for row in rows],
            [row["ttft"]["median"] for row in rows],
            marker="o",
            label=name,
        )
    frames = sorted({row["frames"] for row in report["rows"]})
    axes.set(
        xlabel="frames",
        ylabel="seconds to the first token",
        title=f"{report['size']} model, {report['machine']['device']}",
    )
    axes.set_xticks(frames, [str(count) for count in frames], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
