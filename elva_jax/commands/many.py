"""Options and notices of the commands that ask many questions: processes, progress."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import elva_jax
from elva_jax.commands import flags
from elva_jax.errors import ConfigError
from elva_jax.utils.terminal import is_watched

if TYPE_CHECKING:  # imports JAX
    from jax.sharding import Mesh

INCOMPLETE = 3  # exit status: done, but some questions or answers could not be asked or judged
LOG_SECONDS = 60.0  # between two lines of progress where no one watches


def meet(args: argparse.Namespace) -> tuple[int, int]:
    """This process among those that share the questions; all have the same options.

    With --one-mesh they are joined into one JAX runtime, and each asks all questions: (0, 1).
    """
    if args.one_mesh and not args.mesh:
        args.parser.error("--one-mesh needs --mesh, such as --mesh tensor=8")
    if not args.one_mesh:  # processes with a mesh each outlive one another
        flags.refuse(args, ["heartbeat_timeout"], "needs --one-mesh")
    process = flags.find_process(args)
    apart = {"run", "parser", "process_id", "local_devices", "debug"}
    options = {name: str(value) for name, value in vars(args).items() if name not in apart}
    facts = {**elva_jax.distributed.code_fingerprint(), "options": options}
    if not args.one_mesh:
        return elva_jax.distributed.meet(process, facts, start_timeout=args.start_timeout)
    elva_jax.distributed.initialize(
        process, facts, start_timeout=args.start_timeout, heartbeat_timeout=args.heartbeat_timeout
    )
    return 0, 1


def join_mesh(args: argparse.Namespace, shares: str) -> None:
    """Joins the processes of --one-mesh; others have nothing in common, and are refused.

    Args:
      args: those of the command, which does not share its questions.
      shares: the options with which it does.

    Raises:
      ConfigError: several processes without --one-mesh.
    """
    if args.one_mesh:
        meet(args)
        return
    try:
        process = flags.find_process(args)
    except ConfigError:
        if any(getattr(args, name) is not None for name in flags.PROCESS):
            raise
        return  # a shell in a job of several tasks, alone whatever its launcher says
    if process is not None:
        raise ConfigError(
            f"{process.num_processes} processes ({process.launcher}) would each do all of it; give"
            f" --mesh and --one-mesh, or share questions with {shares}, or let each do all with"
            " --distributed off"
        )


@contextlib.contextmanager
def together(mesh: Mesh | None) -> Iterator[bool]:
    """Within it the processes of a mesh end together; only the first one prints its results.

    Yields:
      whether this process is the first one.
    """
    from elva_jax.parallel.lockstep import lockstep_of

    lockstep = lockstep_of(mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lockstep.together())
        if not lockstep.first:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield lockstep.first


class OnceEach(logging.Filter):
    """Lets the first notice of a kind pass, where every batch would repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message, whatever its numbers, is a new one."""
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new


@contextlib.contextmanager
def progress(noun: str = "questions") -> Iterator[Callable[[str, int, int], None]]:
    """Takes the questions answered of each list: bars on a terminal, or a line per minute."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    watched = is_watched(console)
    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn())
    columns += (MofNCompleteColumn(), Remaining())
    bars: dict[str, Any] = {}
    last = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not watched) as shown:

        def report(name: str, done: int, total: int) -> None:
            nonlocal last
            if watched:
                if name not in bars:
                    bars[name] = shown.add_task(name, total=total)
                shown.update(bars[name], completed=done)
            elif time.monotonic() - last > LOG_SECONDS or done == total:
                last = time.monotonic()
                print(f"{name}: {done} of {total} {noun}", file=sys.stderr, flush=True)

        yield report
