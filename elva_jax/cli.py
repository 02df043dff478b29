"""The console command `elva`: one sub-command a task, each a thin door to a module of its own."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from elva_jax import __version__
from elva_jax.commands import convert, flags
from elva_jax.commands import generate as inference
from elva_jax.errors import ConfigError, ElvaError
from elva_jax.tools.bench import command as bench
from elva_jax.tools.datasets import command as data
from elva_jax.tools.plan import command as plan
from elva_jax.tools.recaption import command as recaption

TRAIN_HELP = """\
Runs the curriculum of a config, stage by stage; started again with the same --workdir it goes on where it stopped.

examples:
  elva train --config configs/tiny.py --workdir runs/tiny
  elva train --config configs/tiny.py:long --workdir runs/long --config.stages.video.steps=8000
  elva train --config configs/elva.py:size=7b,stage=2 --workdir /mnt/runs/7b-stage2 --config.init_from=/mnt/runs/7b-stage1
  srun elva train --config configs/elva.py:size=7b --workdir /mnt/runs/7b   (several processes: docs/cluster.md)

Every key is listed with its meaning in elva_jax/config/schema.py; --print-config shows the values of a config."""

EVALUATE_HELP = """\
Measures a checkpoint on a split of a data set: exact match on open questions and multiple choice by likelihood,
family by family, beside the blind, any-object and single-frame baselines.

example:
  elva evaluate --checkpoint runs/tiny --split test --json runs/tiny/test.json"""


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
    if rest and args.run not in (_train, plan.run):
        args.parser.error(f"unrecognised option: {rest[0]}")
    try:
        return args.run(args, rest) or 0
    except ElvaError as error:
        print(f"elva {args.command}: {error}", file=sys.stderr, flush=True)
        status = 2 if isinstance(error, ConfigError) else 1
        if "elva_jax.parallel.distributed" in sys.modules:
            sys.modules["elva_jax.parallel.distributed"].leave(status)
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

    train = command("train", "train a model through the stages of a config", TRAIN_HELP, _train)
    train.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="config file, and the string for its get_config",
    )
    train.add_argument("--workdir", metavar="DIR", help="where checkpoints, metrics and curves go")
    train.add_argument(
        "--profile",
        type=flags.span,
        metavar="A:B",
        help="trace steps A to B from here on, to WORKDIR/profile",
    )
    train.add_argument(
        "--print-config", action="store_true", help="show the resolved config and stop"
    )
    flags.add_processes(train)
    train.add_argument(
        "--config.KEY=VALUE",
        dest="_",
        metavar="",
        help="change a value of the config, as often as needed",
    )

    evaluate = command(
        "evaluate", "measure a checkpoint on held-out videos", EVALUATE_HELP, _evaluate
    )
    flags.add_checkpoint(evaluate)
    evaluate.add_argument(
        "--data",
        default="moving_shapes/easy",
        metavar="NAME",
        help="data set (default: %(default)s)",
    )
    evaluate.add_argument(
        "--data-dir", metavar="DIR", help="where data sets are built (default: the run's)"
    )
    evaluate.add_argument(
        "--split", default="test", help="split of the data set (default: %(default)s)"
    )
    evaluate.add_argument(
        "--limit", type=flags.positive, metavar="N", help="use the first N videos only"
    )
    flags.add_frames(evaluate)
    evaluate.add_argument(
        "--no-merging", dest="merging", action="store_false", help="leave token merging off"
    )
    evaluate.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="skip the three baselines"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    evaluate.add_argument(
        "--figure", type=Path, metavar="FILE.png", help="draw accuracy per family here"
    )

    inference.register(command)
    convert.register(command)
    plan.register(command)
    bench.register(command)
    recaption.register(command)
    data.register(command)
    return parser


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from elva_jax.config.load import load

    config = load(args.config, overrides)
    if args.print_config:
        print(config)
        return 0
    if not args.workdir:
        args.parser.error("the following arguments are required: --workdir")
    # Until the run itself listens there is nothing to save; PREEMPTED of training/stopping.py, which is slow to import.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_TEMPFAIL))
    from elva_jax.parallel import distributed

    place = None if args.distributed == "off" else distributed.find(os.environ, **flags.place(args))
    distributed.start(place, distributed.facts(config), args.start_timeout, args.heartbeat_timeout)
    from elva_jax.training import train

    with distributed.watching_others():
        return train.run(config, args.workdir, args.profile)


def _evaluate(args: argparse.Namespace, _) -> int:
    from elva_jax.evaluation import evaluate, report
    from elva_jax.utils.compilation_cache import keep_programs
    from elva_jax.utils.json import save_json

    hybrid = flags.hybrid_settings(args)
    keep_programs()
    result = evaluate.evaluate(
        args.checkpoint,
        data_dir=args.data_dir,
        name=args.data,
        split=args.split,
        merging=args.merging,
        limit=args.limit,
        baselines=args.baselines,
        num_frames=args.frames,
        hybrid=hybrid,
    )
    report.table(result)
    if args.json:
        save_json(result, args.json)
    if args.figure:
        report.figure(result, args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
