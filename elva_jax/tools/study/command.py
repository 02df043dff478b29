"""`elva study`: its options and its output."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elva_jax.commands import flags
from elva_jax.errors import ConfigError
from elva_jax.tools.study import describe, pages, report
from elva_jax.utils import numbers, signals
from elva_jax.utils.read import open_output

if TYPE_CHECKING:  # imports JAX
    from elva_jax.tools.study.jobs import Job
    from elva_jax.tools.study.queue import State

HELP = """\
Trains the variants of a study from several seeds, asks them the same questions, and compares them
with intervals over seeds and videos. The same command continues; several processes, on any hosts
that share --out, do so together. Details are in docs/guides/studies.md.

A study is a file in configs/studies/, or one of your own whose get_study() returns a Study.

examples:
  elva study list
  elva study merging --seeds 3 --minutes 60
  elva study survivor --reuse studies/merging       # copies the trainings that both have
  elva study my_study.py --out /mnt/studies/mine
  elva study report studies/merging docs/studies/*.json
  elva study report studies/quickstart --save docs/studies/quickstart.json --write README.md
  elva study expected studies/quickstart/summary.json runs/tiny/test.json"""
LIST, REPORT, EXPECTED = "list", "report", "expected"
OUTSIDE = 3  # exit status: compared, and a figure is outside the range
MINUTES = numbers.real(0, 10**6)


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds it with `command(name, text, run)`, which makes a sub-command of `elva`."""
    parser = command("study", HELP, run)
    add = parser.add_argument
    text = f"a study or its file; `{LIST}`; `{REPORT}` and the folders or summaries to report; or"
    text += f" `{EXPECTED}`, a summary, and a file of `elva evaluate --json` to compare with it"
    add("names", nargs="+", metavar="NAME", help=text)
    text = "seeds of each variant, from 0 (default: as the study says)"
    add("--seeds", type=describe.MOST_SEEDS, metavar="N", help=text)
    text = "save and end after so long; the same command continues (default: when all is done)"
    add("--minutes", type=MINUTES, metavar="M", help=text)
    text = "folder of the runs and results (default: studies/NAME)"
    add("--out", type=flags.output_folder("--out"), metavar="DIR", help=text)
    text = "work on these variants, and on those that they start from, alone; may be given several"
    add("--only", action="append", default=[], metavar="VARIANT", help=f"{text} times")
    text = "folder of another study, whose finished trainings are copied where they are the same;"
    text += " may be given several times"
    add("--reuse", type=Path, action="append", default=[], metavar="DIR", help=text)
    add("--dry-run", action="store_true", help="check the study, and list what is to be done")
    text = f"with `{REPORT}` of one study: store its summary in this file, with rounded numbers"
    add("--save", type=flags.output_file("--save"), metavar="FILE.json", help=text)
    begin, short = pages.BEGIN.format("NAME"), pages.SHORT.format("NAME")
    text = f"with `{REPORT}`: put the tables of each study between {begin} (or {short}, for one"
    text += f" table) and {pages.END} in this file; may be given several times"
    add("--write", type=Path, action="append", default=[], metavar="FILE.md", help=text)


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Runs the command and returns the exit status."""
    first, *rest = args.names
    if first == LIST and not rest:
        return _list()
    if first == REPORT:
        return _report(args, rest)
    if first == EXPECTED:
        return _expected(args, rest)
    if rest or args.write or args.save:
        given = rest[0] if rest else "--write" if args.write else "--save"
        args.parser.error(f"{given}: goes with `elva study {REPORT}`")
    return _work(args, first)


def _list() -> int:
    for name in describe.known():
        study = describe.load_study(describe.find(name))
        print(f"{name}: {study.question} ({len(study.variants)} variants, {study.seeds} seeds)")
    return 0


def _work(args: argparse.Namespace, name: str) -> int:
    path = describe.find(name)
    study = describe.load_study(path)
    out = Path(args.out or Path("studies", path.stem))

    from elva_jax.tools.study.jobs import jobs_of
    from elva_jax.tools.study.queue import Stop, work

    if missing := [other for other in args.reuse if not other.is_dir()]:
        raise ConfigError(f"--reuse: {missing[0]} is no folder")
    every = jobs_of(study, out, args.seeds or study.seeds)
    jobs = _chosen(study, every, args.only)
    if args.dry_run:
        for job in jobs:
            print(f"{job.label}: {'done' if job.done else ' '.join(job.command) or 'measure only'}")
        return 0
    signals.name_command("elva study", terminated=os.EX_TEMPFAIL)
    out.mkdir(parents=True, exist_ok=True)
    with Stop(args.minutes) as stop:
        states = work(jobs, stop, lambda line: print(line, flush=True), args.reuse)
        number, asked = stop.number, bool(stop)
    _write(path.stem, study, every, out)
    return _status(states, stop.status if number or asked else 0)


def _chosen(study: describe.Study, jobs: Sequence[Job], only: Sequence[str]) -> list[Job]:
    """The jobs of some variants, and those that they need."""
    wanted = set(only)
    if unknown := wanted - study.variants.keys():
        known = ", ".join(study.variants)
        raise ConfigError(f"--only: no variant '{numbers.shown(min(unknown))}'; use {known}")
    for name in reversed(list(study.variants)):
        if name in wanted:
            wanted |= {study.variants[name].after, study.variants[name].of}
    return [job for job in jobs if not only or job.variant in wanted]


def _write(name: str, study: describe.Study, jobs: Sequence[Job], out: Path) -> None:
    """Writes summary.json, report.md and report.png, and prints the tables."""
    from elva_jax.tools.study.summary import summarize

    summary = summarize(name, study, jobs)
    figure = ""
    if summary["variants"] and importlib.util.find_spec("matplotlib"):
        from elva_jax.tools.study.plot import save

        figure = save(summary, out / "report.png").name
    with open_output(out / "summary.json", "--out") as file:
        file.write(json.dumps(summary, indent=1) + "\n")
    with open_output(out / "report.md", "--out") as file:
        file.write(report.markdown(summary, figure))
    print(report.markdown(summary))
    print(f"written: {out / 'report.md'}")


def _status(states: dict[str, State], stopped: int) -> int:
    found = set(states.values())
    if found <= {"done"}:
        return 0
    return 1 if "failed" in found else stopped


def _report(args: argparse.Namespace, names: Sequence[str]) -> int:
    from elva_jax.tools.study.stored import load_summary, save_summary

    if not names:
        args.parser.error("name the folders or summaries to report")
    if args.save and len(names) > 1:
        args.parser.error("--save: stores one study; name one")
    found = [load_summary(Path(name)) for name in names]
    if args.save:
        save_summary(found[0], Path(args.save), "--save")
        found = [load_summary(Path(args.save))]
    for summary in found:
        for page in args.write:
            pages.put_tables(page, summary)
        if not args.write:
            print(report.markdown(summary))
    return 0


def _expected(args: argparse.Namespace, names: Sequence[str]) -> int:
    """Prints a run's figures beside those of a study; returns OUTSIDE where one is out of range."""
    from elva_jax.tools.study.expected import compare, print_figures
    from elva_jax.tools.study.stored import load_summary

    if len(names) != 2:
        args.parser.error(f"{EXPECTED}: needs a study's summary, and a run's results")
    summary = load_summary(Path(names[0]))
    figures = compare(summary, Path(names[1]))
    seeds = len(summary["variants"][summary["baseline"]]["seeds"])
    return OUTSIDE if print_figures(figures, seeds) else 0
