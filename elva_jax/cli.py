"""The console command `elva`: finds the sub-command, runs it, and turns errors into exit statuses.

0 done, 1 failed with a message, 2 misused, 75 stopped by SIGTERM with everything saved (start the
same command again), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from elva_jax import __version__
from elva_jax.errors import ConfigError, ElvaError

# Sub-command: the module whose `register` adds it, and its line in `elva --help`. Only the module
# of the command that is called is imported, so that help and completion are fast.
COMMANDS = {
    "train": ("elva_jax.commands.train", "train a model through the stages of a config"),
    "config": ("elva_jax.commands.config", "list every configuration key with its meaning"),
    "evaluate": ("elva_jax.commands.evaluate", "measure a checkpoint on held-out videos"),
    "generate": ("elva_jax.commands.generate", "answer a question about a video"),
    "chat": ("elva_jax.commands.generate", "talk about a video"),
    "convert": ("elva_jax.commands.convert", "weights from and to Hugging Face"),
    "plan": ("elva_jax.tools.plan.command", "compute the needs of a run on other hardware"),
    "bench": (
        "elva_jax.tools.bench.command",
        "parameters, tokens, FLOPs, time and memory, beside the paper's and PyTorch's",
    ),
    "recaption": (
        "elva_jax.tools.recaption.command",
        "describe images and videos in detail with a Qwen2-VL",
    ),
    "data": ("elva_jax.tools.datasets.command", "build data sets and show their contents"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status."""
    _quiet_libraries()
    argv = sys.argv[1:] if argv is None else argv
    args, rest = _parser(argv[0] if argv else "").parse_known_args(argv)
    if rest and "_" not in args:  # `_`: the command takes --config.KEY=VALUE, and parses it itself
        args.parser.error(f"unrecognized option: {rest[0]}")
    try:
        return args.run(args, rest) or 0
    except (ElvaError, ModuleNotFoundError) as error:
        message = error if isinstance(error, ElvaError) else _missing_extra(error.name or "")
        if message is None:
            raise
        print(f"elva {args.command}: {message}", file=sys.stderr, flush=True)
        status = 2 if isinstance(error, ConfigError) else 1
        if distributed := sys.modules.get("elva_jax.parallel.distributed"):
            distributed.exit_if_distributed(status)
        return status
    except KeyboardInterrupt:
        print(f"elva {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`elva … | head`); without this the interpreter would
        # complain when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _missing_extra(module: str) -> str | None:
    """How to install a module that one of our extras provides; None if none does."""
    package = module.partition(".")[0]
    if package == __package__:  # extras name it where they include one another
        return None
    try:
        requirements = importlib.metadata.requires("elva_jax") or []
    except importlib.metadata.PackageNotFoundError:  # the source tree alone, not installed
        return None
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if found and found[1].replace("-", "_").lower() == package.lower():
            return f'needs {package}; pip install "elva_jax[{found[2]}]"'
    return None


def _quiet_libraries() -> None:
    """Silences notices that tell a user nothing, or what an error of ours says already."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax on failed saves
    sys.unraisablehook = _unraisable


def _unraisable(problem: Any) -> None:
    """Omits what tensorstore raises in a thread after a read or write has failed."""
    error = problem.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(problem)


def _parser(called: str) -> argparse.ArgumentParser:
    """The parser with the options of the sub-command `called`, or else with all their names."""
    parser = argparse.ArgumentParser(
        prog="elva", description="ELVA, an encoder-free Video-LLM, in JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"elva_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, summary: str, text: str, run: Callable[..., int] | None, under: Any = commands
    ) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        sub = under.add_parser(
            name, help=summary, description=text, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    if called in COMMANDS:
        importlib.import_module(COMMANDS[called][0]).register(command)
    else:
        for name, (_, summary) in COMMANDS.items():
            commands.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
