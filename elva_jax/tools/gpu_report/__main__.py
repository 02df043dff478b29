"""`launch/gpu_report.sh`: measures one card, and writes report.json and report.md."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from elva_jax.tools.gpu_report.cards import card_of
from elva_jax.tools.gpu_report.driver import Settings, run_parts
from elva_jax.tools.gpu_report.registry import PARTS

HELP = """\
Measures on one card, in at most nine minutes and without network or data: attention, training
steps beside PyTorch's and `elva plan`, prefill and decoding of 7B, Table 5, int8 and int4 weights,
and serving. OUTPUT/report.md and OUTPUT/report.json are written after every part, so a run that is
ended early keeps what it has, and a second run with the same OUTPUT does the parts that are left.

It needs Python 3.11 or newer with jax 0.10 or 0.11 for CUDA, flax, optax, orbax-checkpoint,
transformers, torch for CUDA, ml_collections, einops, jaxtyping and rich, and neither grain nor
tensorflow_datasets. Where there is no network, carry ml_collections as a wheel:
  pip install --no-index --no-deps ml_collections-*.whl
int8 and int4 need qwix as well, and are left out without it.

examples:
  launch/gpu_report.sh
  launch/gpu_report.sh --output h100 --part attention --part table5
  launch/gpu_report.sh --peak-tflops 989 --bandwidth 3.35
  launch/gpu_report.sh --dry-run"""
NEEDED = ("jax", "flax", "optax", "orbax.checkpoint", "transformers", "ml_collections")
BESIDE = ("einops", "jaxtyping", "rich", "yaml", "PIL", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the report; the exit status is 1 if a part has failed."""
    args = _parser().parse_args(arguments)
    if missing := _missing():
        print(f"gpu_report: missing: {', '.join(missing)}; see --help", file=sys.stderr)
        return 2
    name = "dry run on a CPU" if args.dry_run else args.card or _card_name()
    if not name:
        print(
            "gpu_report: nvidia-smi names no card; give its name with --card, or try --dry-run",
            file=sys.stderr,
        )
        return 2
    card = card_of(name, args.peak_tflops, args.bandwidth)
    if not args.dry_run and not (card.flops and card.bandwidth):
        text = "its peak is not known, so shares are left out; give --peak-tflops and --bandwidth"
        print(f"{name}: {text}", file=sys.stderr)
    if args.dry_run:
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings(
        output=args.output,
        seconds=60 * args.minutes,
        dry=args.dry_run,
        programs=args.programs or args.output / "programs",
        card=name,
        peak_tflops=args.peak_tflops,
        bandwidth=args.bandwidth,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    about = {"card": name, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    about |= {"flops": card.flops, "bandwidth": card.bandwidth, "dry": args.dry_run}
    parts = [part for part in PARTS if not args.part or part.name in args.part]
    report = run_parts(parts, settings, about, stop)
    if stop.is_set():
        print(f"interrupted; {args.output}/report.md has what was measured", file=sys.stderr)
        return 130
    print((args.output / "report.md").read_text(encoding="utf-8"))
    wrong = {"failed", "time limit"}
    return int(any(report.parts[part.name]["status"] in wrong for part in parts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/gpu_report.sh",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, text = parser.add_argument, "folder of the report (default: %(default)s)"
    add("--output", type=Path, default=Path("gpu_report"), metavar="FOLDER", help=text)
    text = "for all parts together (default: %(default)s)"
    add("--minutes", type=float, default=9.0, metavar="N", help=text)
    names = [part.name for part in PARTS]
    text = "run this part only; can be repeated (default: all, in this order)"
    add("--part", action="append", choices=names, default=[], help=text)
    add("--card", default="", metavar="NAME", help="the card's name (default: nvidia-smi's)")
    text = "dense bfloat16 TFLOP/s of the card, which take precedence over the built-in table"
    add("--peak-tflops", type=float, default=0.0, metavar="N", help=text)
    text = "TB/s of the card's memory, likewise"
    add("--bandwidth", type=float, default=0.0, metavar="N", help=text)
    text = "folder of compiled programs (default: OUTPUT/programs)"
    add("--programs", type=Path, metavar="FOLDER", help=text)
    add(
        "--dry-run", action="store_true", help="small shapes on the CPU, to see that all parts work"
    )
    return parser


def _missing() -> list[str]:
    """The packages that cannot be found, by the names that `import` knows."""

    def found(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in (*NEEDED, *BESIDE) if not found(name)]


def _card_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


if __name__ == "__main__":
    sys.exit(main())
