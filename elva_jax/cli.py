"""The console command `elva`: one sub-command a task, each a thin door to a module of its own."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from elva_jax import __version__
from elva_jax.commands import convert, evaluate, generate, train
from elva_jax.errors import ConfigError, ElvaError
from elva_jax.tools.bench import command as bench
from elva_jax.tools.datasets import command as data
from elva_jax.tools.plan import command as plan
from elva_jax.tools.recaption import command as recaption


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status: 0 done, 1 failed with a message, 2 misused, 75 try again, 130 interrupted."""
    # Notices of libraries that are no news to a user: no PyTorch here, a checkpoint opened for reading only.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("absl").setLevel(
        logging.CRITICAL
    )  # a save that failed is said in one line by whoever asked for it
    sys.unraisablehook = _unraisable
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.run not in (train.run, plan.run):
        args.parser.error(f"unrecognised option: {rest[0]}")
    try:
        return args.run(args, rest) or 0
    except ElvaError as error:
        print(f"elva {args.command}: {error}", file=sys.stderr, flush=True)
        status = 2 if isinstance(error, ConfigError) else 1
        if "elva_jax.parallel.distributed" in sys.modules:
            sys.modules["elva_jax.parallel.distributed"].exit_if_distributed(status)
        return status
    except KeyboardInterrupt:
        print(f"elva {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`elva … | head`); keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _unraisable(problem) -> None:
    """Leaves out what tensorstore says behind Orbax's back when a read or a write has failed, which is reported already."""
    if not (
        isinstance(problem.exc_value, RuntimeError)
        and str(problem.exc_value) == "Event loop is closed"
    ):
        sys.__unraisablehook__(problem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elva", description="ELVA, an encoder-free Video-LLM, in JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"elva_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, text: str, run, under=commands) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        sub = under.add_parser(
            name, help=summary, description=text, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    train.register(command)
    evaluate.register(command)
    generate.register(command)
    convert.register(command)
    plan.register(command)
    bench.register(command)
    recaption.register(command)
    data.register(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
