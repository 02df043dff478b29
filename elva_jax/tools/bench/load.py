"""`elva bench load`: memory and time of opening a model, beside its size and the files' reading."""

from __future__ import annotations

import argparse
from typing import Any

from elva_jax.commands import flags
from elva_jax.tools.bench.table import text_table

HELP = """\
Loads a model as `elva generate` does, each time in a process of its own, and prints

  peak     the largest resident memory above that of the process before it, beside the size of the
           weights in the compute type (on a GPU: of the device's memory)
  seconds  from the path to the model, its checksums compared and its weights on the device, beside
           the seconds of just reading the same files one after the other

Before both, the files are dropped from the system's cache, as far as it follows that advice. With
--preset, a model with random weights is written to a temporary folder first: as a run with float32
weights, and as a bfloat16 Hugging Face folder exported from it.

examples:
  elva bench load --checkpoint runs/7b
  elva bench load --preset 1.5b --json load.json
  elva bench load --preset 1.5b --weights int8"""

NAMES = ("tiny", "1.5b", "7b")
MIB, GIB = 2**20, 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, --preset, --folder, --dtype, --weights and --repeats."""
    from elva_jax.tools.bench.arguments import add_repeats

    what = parser.add_mutually_exclusive_group()
    text = "run, saved step or exported folder"
    what.add_argument("--checkpoint", metavar="DIR", help=text)
    text = "shapes of a model with random weights (default: %(default)s)"
    what.add_argument("--preset", choices=NAMES, default="1.5b", help=text)
    text = "where --preset writes its files, which are removed (default: the temporary folder)"
    parser.add_argument("--folder", metavar="DIR", help=text)
    text = "compute type (default: %(default)s)"
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help=text)
    flags.add_weights(parser)
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures each source."""
    import tempfile
    from pathlib import Path

    from elva_jax.tools.bench.load_measure import (
        PRESETS,
        apart,
        measure,
        read_seconds,
        write_random,
    )

    def rows(sources: dict[str, Path]) -> list[dict[str, Any]]:
        out = []
        for name, path in sources.items():
            row: dict[str, Any] = {"source": name, "path": str(path)}
            row["read_seconds"] = [read_seconds(path) for _ in range(args.repeats)]
            runs = [apart(measure, path, args.dtype, args.weights) for _ in range(args.repeats)]
            out.append(row | _summary(row["read_seconds"], runs))
        return out

    report = {"bench": "load", "dtype": args.dtype, "weights": args.weights}
    if args.checkpoint:
        name = Path(args.checkpoint).name
        return report | {"preset": None, "rows": rows({name: Path(args.checkpoint)})}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        sources = apart(write_random, PRESETS[args.preset], Path(folder))
        return report | {"preset": args.preset, "rows": rows(sources)}


def _summary(read: list[float], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the runs, and what they are beside the bare minimum."""
    import statistics

    read_median = statistics.median(read)
    seconds = statistics.median(run["seconds"] for run in runs)
    peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
    peak, size = max(peaks, default=None), runs[0]["weight_bytes"]
    return {
        **{key: runs[0][key] for key in ("file_bytes", "weight_bytes", "device")},
        "peak_bytes": peak,
        "peak_ratio": None if peak is None else peak / size,
        "seconds": seconds,
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
        "time_ratio": seconds / read_median,
        "runs": runs,
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    import statistics

    rows = [
        (
            row["source"],
            _size(row["file_bytes"]),
            _size(row["weight_bytes"]),
            "–" if row["peak_bytes"] is None else _size(row["peak_bytes"]),
            "–" if row["peak_ratio"] is None else f"{row['peak_ratio']:.3f}",
            f"{row['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{statistics.median(row['read_seconds']):.2f}",
            f"{row['time_ratio']:.2f}",
        )
        for row in report["rows"]
    ]
    columns = ("source", "files", "weights", "peak", "x", "seconds", "of CPU", "reading", "x")
    what = report["preset"] or "checkpoint"
    types = report["weights"] or report["dtype"]
    title = f"Loading: {what}, {types}, {report['rows'][0]['device']}"
    return f"{title}\n\n{text_table(columns, rows)}"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.2f} MiB"
