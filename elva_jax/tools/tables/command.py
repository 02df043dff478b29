"""`elva bench table1`, … `fig3`: the flags, and what they mean."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elva_jax.commands import evaluate_tasks, flags, many
from elva_jax.config.check import nearest
from elva_jax.errors import ConfigError
from elva_jax.tools.tables.protocols import PROTOCOLS, Protocol
from elva_jax.tools.tables.show import show as show_table

if TYPE_CHECKING:  # imports JAX
    from elva_jax.tools.tables.measure import Source


class TableBench:
    """One table as a bench of `tools.bench.command`.

    Args:
      protocol: how it is measured.
    """

    def __init__(self, protocol: Protocol):
        self._protocol = protocol
        self.HELP = _help(protocol)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of this bench."""
        add = parser.add_argument
        text = "a run, a stage in it, a saved step, or an exported folder"
        text += f", for the row LABEL: {', '.join(self._protocol.rows)}"
        if self._protocol.open:
            text += "; or a row of your own"
        add("--checkpoint", action="append", default=[], metavar="[LABEL=]DIR", help=text)
        text = (
            "local copies: a folder per benchmark, or that of the only one (default: %(default)s)"
        )
        add("--data-root", type=Path, metavar="DIR", help=text)
        text = "files may be links that lead out of the benchmark's folder and --data-root"
        add("--follow-links", action="store_true", help=text)
        text = f"benchmarks to ask (default: those of the paper: {','.join(self._protocol.tasks)})"
        add("--tasks", type=evaluate_tasks.names, metavar="NAME,…", help=text)
        text = "ask your own questions instead, as `elva evaluate --data` does"
        add("--data", metavar="FILE.json", help=text)
        text = "ask only the first N questions of each benchmark"
        add("--limit", type=flags.positive, metavar="N", help=text)
        text = "folder of the answers, with which the same command continues"
        add("--output", type=flags.output_folder("--output"), metavar="DIR", help=text)
        text = "generated (default), likelihood or letter; several separated by commas"
        add(
            "--answers",
            type=evaluate_tasks.names,
            default=("generated",),
            metavar="WAY,…",
            help=text,
        )
        flags.add_frames(parser)
        flags.add_no_merging(parser)
        flags.add_mesh(parser)
        evaluate_tasks.add_judge(parser)

    @flags.library_notices()
    def run(self, args: argparse.Namespace) -> dict[str, Any]:
        """Measures the rows that have a checkpoint; without any, the paper's alone are shown."""
        import elva_jax
        from elva_jax.evaluation.runner.tasks import resolve
        from elva_jax.tools.tables.measure import Asked, measure

        protocol = self._protocol
        sources = [source_of(text, protocol) for text in args.checkpoint]
        if args.tasks and args.data:
            args.parser.error("--tasks and --data are asked apart; give one of them")
        tasks: Any = args.tasks or protocol.tasks
        if args.data:
            tasks = [elva_jax.load_own(args.data, args.data_root)]
        asked = Asked(
            benchmarks=resolve(tasks) if sources else (),
            root=args.data_root or Path(),
            output=args.output,
            limit=args.limit,
            frames=args.frames,
            hybrid=flags.hybrid_settings(args),
            merging=args.merging,
            answers=args.answers,
            judge=evaluate_tasks.judge_of(args),
            follow_links=args.follow_links,
            mesh=flags.open_mesh(args),
        )
        if sources:
            elva_jax.enable_compilation_cache()
        with many.progress() as report:
            return measure(
                protocol, sources, asked, lambda row, name, *done: report(f"{row}: {name}", *done)
            )

    def show(self, report: dict[str, Any]) -> str:
        """Formats the report."""
        return show_table(self._protocol, report)


def source_of(text: str, protocol: Protocol) -> Source:
    """A checkpoint of the command line, `LABEL=DIR` or `DIR`.

    Raises:
      ConfigError: a label that is no row, or none where the table needs one.
    """
    from elva_jax.tools.tables.measure import Source

    label, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        if protocol.settings:
            return Source(label=None, path=text)
        if protocol.open:
            return Source(label=Path(text).name or text, path=text)
        raise ConfigError(
            f"--checkpoint {text}: which row is it? give LABEL=DIR, with one of"
            f" {', '.join(protocol.rows)}"
        )
    known = {name.casefold(): name for name in protocol.rows}
    if label.casefold() in known:
        return Source(label=known[label.casefold()], path=path)
    if protocol.open:
        return Source(label=label, path=path)
    raise ConfigError(
        f"--checkpoint {text}: {protocol.title.partition(':')[0]} has no row"
        f" '{label}'{nearest(label, protocol.rows)} (there are {', '.join(protocol.rows)})"
    )


def _help(protocol: Protocol) -> str:
    label = next(iter(protocol.rows)) if not protocol.open else "ELVA-7B"
    checkpoint = "runs/7b" if protocol.settings else f"{label}=runs/{label.casefold()}"
    rows = (
        "Its rows are settings of one checkpoint, or checkpoints of their own (LABEL=DIR)."
        if protocol.settings
        else "Each row is a checkpoint of its own; several may be given."
    )
    text = (
        f"{protocol.title}. Asks the benchmarks of the paper and prints our numbers beside its"
        " rows, with a note wherever the two are not the same measurement. The paper writes its"
        f" answers, and so does this. {rows} Without any, the paper's rows are shown alone."
    )
    return f"""\
{textwrap.fill(text, 100)}

example:
  elva bench {protocol.name} --checkpoint {checkpoint} --data-root benchmarks"""


TABLES = tuple(
    (name, protocol.title.replace(": ", " of the paper: "), TableBench(protocol))
    for name, protocol in PROTOCOLS.items()
)
