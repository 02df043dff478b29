"""The sub-command `elva config`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from elva_jax.config import describe

HELP = """\
Prints every configuration key with its type, allowed values, default and meaning; of a config file
also its value, and whether that is the default or comes from the file or the command line.

examples:
  elva config
  elva config --config configs/tiny.py
  elva config --config configs/elva.py:size=7b,stage=2 --config.stages.stage2.batch_size=128"""


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds it with `command(name, text, run)`, which makes a sub-command of `elva`."""
    config = command("config", HELP, run)
    config.add_argument(
        "--config",
        metavar="FILE.py[:ARG]",
        help="config file, and the string for its get_config (default: the schema alone)",
    )
    config.add_argument(
        "--markdown", action="store_true", help="print the page docs/config.md instead"
    )
    config.add_argument(
        "--config.KEY=VALUE",
        dest="_",
        metavar="",
        help="change a value of the config, as often as needed",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs the command and returns the exit status."""
    if args.config is None and overrides:
        args.parser.error(f"{overrides[0]} needs --config FILE.py")
    if args.markdown:
        print(describe.markdown(), end="")
    else:
        print(describe.text(args.config, overrides))
    return 0
