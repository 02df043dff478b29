"""The console command `elva`: finds the sub-command, runs it, and turns errors into exit statuses.

0 done, 1 failed with a message, 2 misused, 3 done, but some questions could not be asked, 70
failed by a bug of ours, 75 stopped by SIGTERM with everything saved (start the same command again),
130 interrupted, 143 terminated. --debug or ELVA_DEBUG=1 shows the trace of any error.
"""

from __future__ import annotations

from elva_jax.utils import signals

if __name__ == "__main__":
    signals.end_on_signals()

import argparse
import gc
import importlib
import importlib.metadata
import io
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from elva_jax.errors import ElvaError
from elva_jax.utils import failures, garbage, notices
from elva_jax.version import __version__

# Sub-command: the module whose `register` adds it, and its line in `elva --help`. Only the module
# of the command that is called is imported, so that help and completion are fast.
COMMANDS = {
    "train": ("elva_jax.commands.train", "train a model through the stages of a config"),
    "config": ("elva_jax.commands.config", "list every configuration key with its meaning"),
    "evaluate": ("elva_jax.commands.evaluate", "measure a checkpoint on held-out videos"),
    "generate": ("elva_jax.commands.generate", "answer a question about a video"),
    "chat": ("elva_jax.commands.generate", "talk about a video"),
    "compile": ("elva_jax.commands.compile", "store the programs that answers need on disk"),
    "serve": ("elva_jax.commands.serve", "answer over HTTP, for clients of OpenAI's API"),
    "convert": ("elva_jax.commands.convert", "weights from and to Hugging Face"),
    "plan": ("elva_jax.tools.plan.command", "compute the needs of a run on other hardware"),
    "bench": (
        "elva_jax.tools.bench.command",
        "parameters, tokens, FLOPs, time and memory, beside the paper's and PyTorch's",
    ),
    "study": (
        "elva_jax.tools.study.command",
        "compare variants of a training run over seeds, with intervals",
    ),
    "recaption": (
        "elva_jax.tools.recaption.command",
        "describe images and videos in detail with a Qwen2-VL",
    ),
    "data": ("elva_jax.tools.datasets.command", "build data sets and show their contents"),
}


DEBUG = "--debug"


class _Once(argparse.Action):
    """Stores the value of an option; a second value would replace the first in silence."""

    given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string and self.given:
            parser.error(f"{option_string}: given twice; give it once")
        self.given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser whose options with one value are given once; sub-parsers are of the same class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for action in self._actions:
            if isinstance(action, _Once):
                action.given = False
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status.

    Args:
      argv: the arguments; None: those of this process, which then ends within two seconds after
        SIGINT or SIGTERM.
    """
    if argv is not None:
        try:
            return _report(argv)
        except KeyboardInterrupt as error:
            return signals.announce(error)
    signals.end_on_signals()
    garbage.collect_seldom()
    try:
        with signals.raised_as_exceptions():
            return _report(sys.argv[1:])
    except KeyboardInterrupt as error:
        status = signals.announce(error)
        if distributed := sys.modules.get("elva_jax.parallel.distributed"):
            distributed.leave()
        signals.end(status)
    finally:
        gc.freeze()  # the interpreter would look for garbage among all objects before it ends


def _report(argv: Sequence[str]) -> int:
    """Runs one sub-command, reports its error, and returns the exit status."""
    debug = DEBUG in argv or failures.wants_debug()
    if DEBUG in argv:
        os.environ["ELVA_DEBUG"] = "1"  # for worker processes
    called = next((word for word in argv if not word.startswith("-")), "")
    name = f"elva {called}" if called in COMMANDS else "elva"
    signals.name_command(name)
    _quiet_libraries()
    try:
        try:
            with notices.shown():
                status = _run(argv, called)
        finally:
            sys.stdout.flush()  # a full disk shows here, or when the interpreter ends
        return status
    except Exception as error:
        if isinstance(error, OSError):
            no_reader = isinstance(error, BrokenPipeError) and _output_has_no_reader()
            _discard_output()
            if no_reader:
                return 0
        if isinstance(error, ModuleNotFoundError) and (extra := _missing_extra(error.name or "")):
            error = ElvaError(extra).with_traceback(error.__traceback__)
        distributed = sys.modules.get("elva_jax.parallel.distributed")
        if distributed:
            distributed.await_lost()
        status = failures.report(error, name, debug=debug)
        if distributed:
            distributed.exit_if_distributed(status)
        return status


def _run(argv: Sequence[str], called: str) -> int:
    args, rest = _parser(called).parse_known_args([word for word in argv if word != DEBUG])
    if rest and "_" not in args:  # `_`: the command takes --config.KEY=VALUE, and parses it itself
        args.parser.error(f"unrecognized option: {rest[0]}")
    return args.run(args, rest) or 0


def _output_has_no_reader() -> bool:
    """Whether the reader of our output has gone (`elva … | head`), which is no failure."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _discard_output() -> None:
    """Discards what standard output cannot take; the interpreter would complain when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    if sys.stdout is None:  # closed, as in `elva … >&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stdin):
        # Text that a stream cannot hold is escaped: an answer is not lost for one character.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    failures.report_in_threads()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax on failed saves
    sys.unraisablehook = _unraisable


def _unraisable(problem: Any) -> None:
    """Repeats signals, and omits what tensorstore raises after a read or write has failed."""
    error = problem.exc_value
    omitted = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not (omitted or signals.repeat(error)):
        sys.__unraisablehook__(problem)


def _parser(called: str) -> argparse.ArgumentParser:
    """The parser with the options of the sub-command `called`, or else with all their names."""
    parser = _Parser(
        prog="elva", description="ELVA, an encoder-free Video-LLM, in JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"elva_jax {__version__}")
    _add_debug(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        text: str,
        run: Callable[..., int] | None,
        under: Any = commands,
        summary: str = "",
    ) -> argparse.ArgumentParser:
        raw, summary = argparse.RawDescriptionHelpFormatter, summary or COMMANDS[name][1]
        sub = under.add_parser(
            name, help=summary, description=text, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(run=run, parser=sub)
        _add_debug(sub)
        return sub

    if called in COMMANDS:
        importlib.import_module(COMMANDS[called][0]).register(command)
    else:
        for name, (_, summary) in COMMANDS.items():
            commands.add_parser(name, help=summary)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """Shows --debug in the help; `main` takes it from any place of the command line."""
    parser.add_argument(DEBUG, action="store_true", help="show the trace of an error")


if __name__ == "__main__":
    sys.exit(main())
