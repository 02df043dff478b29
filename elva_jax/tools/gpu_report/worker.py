"""One part of the report in a process of its own; the driver starts it."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from elva_jax.tools.gpu_report.cards import card_of
from elva_jax.tools.gpu_report.context import Context
from elva_jax.tools.gpu_report.registry import PARTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the part; measurements are appended to the file that `--rows` names."""
    parser = argparse.ArgumentParser(prog="python -m elva_jax.tools.gpu_report.worker")
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--programs", type=Path, help="folder of compiled programs")
    parser.add_argument("--limit", type=float, default=0.0)
    parser.add_argument("--card", default="")
    parser.add_argument("--peak-tflops", type=float, default=0.0)
    parser.add_argument("--bandwidth", type=float, default=0.0)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(arguments)
    if args.limit:
        # A hang in a library ends here, with the stack that shows where, even without a driver.
        faulthandler.dump_traceback_later(args.limit, exit=True)
    if args.programs:
        from elva_jax.utils.compilation_cache import enable_compilation_cache

        enable_compilation_cache(args.programs)
    part = next(part for part in PARTS if part.name == args.part)
    if not (args.dry_run or dict(part.environment).get("JAX_PLATFORMS") or _sees_a_gpu()):
        print("JAX sees no GPU; install jax[cuda13], or try --dry-run", file=sys.stderr)
        return 2
    card = card_of(args.card, args.peak_tflops, args.bandwidth)
    module = importlib.import_module(f"elva_jax.tools.gpu_report.parts.{part.module}")
    module.run(Context(args.rows, card, dry=args.dry_run), *part.options)
    faulthandler.cancel_dump_traceback_later()
    return 0


def _sees_a_gpu() -> bool:
    import jax

    return jax.default_backend() == "gpu"


if __name__ == "__main__":
    sys.exit(main())
