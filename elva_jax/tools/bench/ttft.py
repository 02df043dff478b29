"""`elva bench ttft`: time to the first token, peak memory and decoding speed (Table 5)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elva_jax.commands import flags
from elva_jax.tools.bench.arguments import add_dtype, add_repeats, counts, dtype_of
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import machine, milliseconds
from elva_jax.utils import numbers

HELP = """\
Runs an encoder-based Video-LLM, ELVA without merging, with merging, and with merging and hybrid
resolution (half of the frames low), and MERV, whose four encoders see 32 frames of any video, on
the same videos, interleaved in one process. All have random weights and the same decoder. Time is
measured from patches in host memory to the first token.

The default is a small model on a CPU, and 1.5B on a GPU; tiny only shows that everything runs, on
videos of one content. Videos have a known redundancy: from frame to frame none (static), a quarter
(slow), half (typical), three quarters (fast) or all (noise) of the patches change.

examples:
  elva bench ttft --frames 8,32,128
  elva bench ttft --size 7b --content typical --figure ttft.png --json ttft.json"""

CONTENT_FRAMES = 32  # of the videos that differ only in redundancy
CONTENTS = ("static", "slow", "typical", "fast", "noise")
MEASURED = (
    *("tokens", "left %", "first token ms", "less by %", "paper %"),
    *("peak MiB", "less by %", "paper %", "tokens/s"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, text = parser.add_argument, "frame counts (default: %(default)s)"
    add("--frames", type=counts, default="8,16,32,64,128,256", metavar="N,N,…", help=text)
    text = "default: small on a CPU, 1_5b on a GPU"
    add("--size", choices=["tiny", "small", "1_5b", "7b"], help=text)
    text = "of the videos (default: %(default)s)"
    add("--content", choices=CONTENTS, default="typical", help=text)
    text = "tokens whose decoding is timed (default: %(default)s)"
    add("--new-tokens", type=numbers.TOKENS, default=32, metavar="N", help=text)
    add(
        "--figure",
        type=flags.output_file("--figure"),
        metavar="FILE.png",
        help="draw the times here",
    )
    add_dtype(parser)
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all models at all frame counts, then three of them on every content."""
    import jax

    from elva_jax.tools.analysis.paper import MODELS
    from elva_jax.tools.bench.video_llm import paper_models, small_models, tiny_models

    size = args.size or ("1_5b" if jax.default_backend() == "gpu" else "small")
    dtype = dtype_of(args)
    own = {"tiny": tiny_models, "small": small_models}
    models = own[size](dtype) if size in own else paper_models(size, dtype)
    cases = [(variant, frames, args.content) for frames in args.frames for variant in MODELS]
    by_content = [
        (variant, CONTENT_FRAMES, content)
        for content in (CONTENTS if size != "tiny" else ())
        for variant in ("encoder_free", "merge", "merge_hr")
    ]
    # In the order of tokens, because a GPU's high-water mark of memory only rises.
    ordered = sorted(
        dict.fromkeys(cases + by_content),
        key=lambda case: (models[case[0]].tokens(case[1]), not models[case[0]].merging),
    )
    results = {
        case: models[case[0]].measure(*case[1:], args.new_tokens, args.repeats) for case in ordered
    }
    report = {
        "machine": machine(),
        "size": size,
        "dtype": dtype,
        "content": args.content,
        "rows": [_row(results, case) for case in cases],
        "by_content": [_row(results, case) for case in by_content],
    }
    if args.figure:
        _draw(report, args.figure)
    return report


def _row(results: dict, case: tuple[str, int, str]) -> dict[str, Any]:
    """One case, with its reductions in percent against the encoder-based model."""
    variant, frames, content = case
    base, result = results.get(("encoder_based", frames, content)), results[case]
    row = {"variant": variant, "frames": frames, "content": content} | result
    if base and variant != "encoder_based":
        row["ttft_reduction"] = 100 * (1 - result["ttft"]["median"] / base["ttft"]["median"])
        if base["peak_bytes"] and result["peak_bytes"]:
            row["memory_reduction"] = 100 * (1 - result["peak_bytes"] / base["peak_bytes"])
    return row


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    from elva_jax.tools.analysis.paper import MODELS

    groups: list[list[str] | None] = []
    for row in report["rows"]:
        if groups and row["variant"] == next(iter(MODELS)):
            groups.append(None)
        groups.append([str(row["frames"]), MODELS[row["variant"]], *_cells(row)])
    contents = [
        [row["content"], MODELS[row["variant"]], *_cells(row)] for row in report["by_content"]
    ]
    settings = f"{report['size']} model, {report['dtype']}, {report['content']} video"
    shown = [
        f"{report['machine']['device']}, {settings}",
        text_table(["frames", "model", *MEASURED], groups, words=2),
    ]
    if contents:
        note = "frames, by the share of patches that change from frame to frame"
        table = text_table(["content", "model", *MEASURED], contents, words=2)
        shown += ["", f"{CONTENT_FRAMES} {note}", table]
    return "\n".join(shown)


def _cells(row: dict[str, Any]) -> list[str]:
    """The cells of `MEASURED` for one row."""
    from elva_jax.tools.analysis.paper import TABLE5

    paper = TABLE5.get(row["frames"], {})
    paper_ttft = paper_memory = "-"
    if row["variant"] in paper and "ttft_reduction" in row:
        base, cell = paper["encoder_based"], paper[row["variant"]]
        paper_ttft = f"{100 * (1 - cell.ttft_s / base.ttft_s):.1f}"
        paper_memory = f"{100 * (1 - cell.memory_gb / base.memory_gb):.1f}"
    ttft, memory = (
        f"{row[key]:.1f}" if key in row else "-" for key in ("ttft_reduction", "memory_reduction")
    )
    return [
        f"{row['tokens']:,}",
        f"{100 * row['kept']:.1f}",
        milliseconds(row["ttft"]),
        ttft,
        paper_ttft,
        f"{row['peak_bytes'] / 2**20:,.0f}" if row["peak_bytes"] else "-",
        memory,
        paper_memory,
        f"{row['tokens_per_second']:.1f}",
    ]


def _draw(report: dict[str, Any], path: Path) -> None:
    """Draws the time to the first token over frames, one line per model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from elva_jax.tools.analysis.paper import MODELS

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for variant, name in MODELS.items():
        rows = [row for row in report["rows"] if row["variant"] == variant]
        frames, times = [row["frames"] for row in rows], [row["ttft"]["median"] for row in rows]
        axes.loglog(frames, times, marker="o", label=name)
    frames = sorted({row["frames"] for row in report["rows"]})
    title = f"{report['size']} model, {report['machine']['device']}"
    axes.set(xlabel="frames", ylabel="seconds to the first token", title=title)
    axes.set_xticks(frames, [str(count) for count in frames], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
