"""`elva bench evaluate`: questions per second, one by one and by the runner of evaluations."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elva_jax.commands import flags
from elva_jax.tools.bench.arguments import add_repeats
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import Spread, machine, spread
from elva_jax.utils import numbers

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from elva_jax.evaluation.benchmarks.base import Benchmark, Evaluation
    from elva_jax.inference.model import ElvaModel

HELP = """\
Asks a run the questions of a built data set: one by one, each with its video, and by the runner of
`elva evaluate --tasks`; then by processes with one core each. Answers are written; they are
compared token by token. Starts and compilations are not timed.

example:
  elva bench evaluate --checkpoint runs/tiny --limit 100"""

SECONDS = 600.0  # that a process may take to start and compile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    flags.add_checkpoint(parser)
    add, default = parser.add_argument, "(default: %(default)s)"
    text = f"built data set with questions and options {default}"
    add("--data", default="moving_shapes/easy", metavar="NAME", help=text)
    add("--data-dir", metavar="DIR", help="where data sets are built (default: as in the run)")
    add("--split", default="test", help=f"split of the data set {default}")
    add("--limit", type=flags.positive, default=100, metavar="N", help=f"videos {default}")
    text = f"most questions that are asked together {default}"
    add("--batch-size", type=numbers.ROWS, default=64, metavar="N", help=text)
    text = f"longest answer {default}"
    add("--max-new-tokens", type=numbers.TOKENS, default=8, metavar="N", help=text)
    text = f"processes that are compared with one; 1: none {default}"
    add("--processes", type=numbers.WORKERS, default=2, metavar="N", help=text)
    flags.add_mesh(parser)
    flags.add_weights(parser)
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times all ways in turn."""
    import elva_jax
    from elva_jax.evaluation.models import open_elva
    from elva_jax.inference.media import Request

    elva_jax.enable_compilation_cache()
    elva, _ = open_elva(args.checkpoint, flags.open_mesh(args), args.weights)
    benchmark = _benchmark(args, elva)
    questions = benchmark.read(Path())
    seconds: dict[str, list[float]] = {"one by one": [], "runner": []}
    same = True
    for repeat in range(args.repeats + 1):  # the first one compiles
        start = time.perf_counter()
        alone = [
            elva.generate([Request(q.media, q.prompt)], max_new_tokens=args.max_new_tokens)[0].text
            for q in questions
        ]
        between = time.perf_counter()
        evaluation = _evaluate(elva, benchmark, args)
        end = time.perf_counter()
        same &= alone == [grade.response.text for grade in evaluation.grades["generated"]]
        if repeat:
            seconds["one by one"].append(between - start)
            seconds["runner"].append(end - between)
    if args.processes > 1:
        seconds |= _by_processes(args, (1, args.processes))
    return {
        "machine": machine(),
        "videos": args.limit,
        "questions": len(questions),
        "batch_size": args.batch_size,
        "same": same,
        "ok": same,
        "seconds": {name: spread(values) for name, values in seconds.items()},
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    seconds: dict[str, Spread] = report["seconds"]
    rows = []
    for name, found in seconds.items():
        base = seconds["one by one"] if name == "runner" else seconds.get(_name(1))
        ratio = "-"
        if base and name not in ("one by one", _name(1)):
            ratio = f"{base['median'] / found['median']:.2f}"
        rate = report["questions"] / found["median"]
        rows.append([name, f"{rate:.1f}", f"{found['median']:.2f}", ratio])
    answers = "equal" if report["same"] else "DIFFERENT"
    return "\n".join(
        [
            f"{report['machine']['device']}, {report['questions']} questions about"
            f" {report['videos']} videos, batches of {report['batch_size']}; answers {answers}",
            text_table(["asked", "questions/s", "seconds", "times as fast"], rows),
        ]
    )


def _name(processes: int) -> str:
    return f"{processes} process{'es' * (processes > 1)}, a core each"


def _benchmark(args: argparse.Namespace, elva: ElvaModel) -> Benchmark:
    """The questions of a built data set, answered by a letter."""
    from elva_jax.data.conversation import choice_prompt
    from elva_jax.data.example import Media
    from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores
    from elva_jax.evaluation.questions import read_split

    data_dir = Path(args.data_dir or elva.config.data_dir)
    questions = [
        Question(
            key=f"{video.key}-{number}",
            media=(Media(video.source, "video"),),
            prompt=choice_prompt(item.text, item.options),
            text=item.text,
            options=item.options,
        )
        for video in read_split(args.data, args.split, data_dir, args.limit)
        for number, item in enumerate(video.questions)
    ]
    return Benchmark(
        name="bench",
        title="Bench",
        kind="choice",
        reader=lambda _: questions,
        grade=lambda response: Grade(response=response, parsed=None, status="unparsed", credit=0.0),
        score=lambda grades: Scores(main=Metric(name="accuracy", value=0.0, count=len(grades))),
    )


def _evaluate(
    elva: ElvaModel, benchmark: Benchmark, args: argparse.Namespace, **shared: Any
) -> Evaluation:
    from elva_jax.evaluation.runner.run import evaluate_benchmarks
    from elva_jax.evaluation.runner.settings import BenchmarkConfig

    config = BenchmarkConfig(
        answers=("generated",), batch_size=args.batch_size, max_new_tokens=args.max_new_tokens
    )
    return evaluate_benchmarks(elva, [benchmark], ".", config, **shared)[0]


def _by_processes(args: argparse.Namespace, counts: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of each repeat, from the common start to the end of the last process.

    The numbers of processes take turns, so that a machine whose speed changes slows all of them.
    """
    seconds: dict[str, list[float]] = {_name(count): [] for count in counts}
    with contextlib.ExitStack() as stack:
        teams = {count: stack.enter_context(_team(args, count)) for count in counts}
        for repeat in range(args.repeats + 1):  # the first one compiles
            for count, (begin, end) in teams.items():
                begin.wait(SECONDS)
                start = time.perf_counter()
                end.wait(SECONDS)
                seconds[_name(count)] += [time.perf_counter() - start] * (repeat > 0)
    return seconds


@contextlib.contextmanager
def _team(args: argparse.Namespace, count: int) -> Iterator[tuple[Barrier, Barrier]]:
    """Starts processes that ask together, between two barriers, once per repeat."""
    context = multiprocessing.get_context("spawn")
    begin, end = context.Barrier(count + 1), context.Barrier(count + 1)
    values = argparse.Namespace(
        **{k: v for k, v in vars(args).items() if k not in ("run", "parser")}
    )
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(
                target=_work, args=(values, (index, count), begin, end, folder), daemon=True
            )
            for index in range(count)
        ]
        for worker in workers:
            worker.start()
        yield begin, end
        for worker in workers:
            worker.join(SECONDS)


def _work(
    args: argparse.Namespace, process: tuple[int, int], begin: Barrier, end: Barrier, folder: str
) -> None:
    """One process: compiles, then asks its share in each repeat."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[process[0] % len(cores)]})

    try:
        _repeat(args, process, begin, end, folder)
    except BaseException:
        begin.abort()  # the others would wait for this one
        end.abort()
        raise


def _repeat(
    args: argparse.Namespace, process: tuple[int, int], begin: Barrier, end: Barrier, folder: str
) -> None:
    import elva_jax
    from elva_jax.evaluation.models import open_elva

    elva_jax.enable_compilation_cache()
    elva, _ = open_elva(args.checkpoint, flags.open_mesh(args), args.weights)
    benchmark = _benchmark(args, elva)
    for repeat in range(args.repeats + 1):
        begin.wait(SECONDS)
        _evaluate(elva, benchmark, args, output=Path(folder) / str(repeat), process=process)
        end.wait(SECONDS)
