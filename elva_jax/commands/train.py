"""The sub-command `elva train`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import elva_jax
from elva_jax.commands import flags
from elva_jax.utils import signals

HELP = """\
Runs the curriculum of a config, stage by stage. Started again with the same --workdir, it continues
where it stopped.

examples:
  elva train --config configs/tiny.py --workdir runs/tiny
  elva train --config configs/tiny.py:long --workdir runs/long --config.stages.video.steps=8000
  elva train --config configs/elva.py:size=7b,stage=2 --workdir /mnt/runs/7b-stage2 \\
    --config.init_from=/mnt/runs/7b-stage1
  srun elva train --config configs/elva.py:size=7b --workdir /mnt/runs/7b  (docs/cluster.md)

`elva config` lists every key with its meaning (docs/config.md); --print-config shows the values
of a config."""


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds it with `command(name, text, run)`, which makes a sub-command of `elva`."""
    train = command("train", HELP, run)
    add = train.add_argument
    text = "config file, and the string for its get_config"
    add("--config", required=True, metavar="FILE.py[:ARG]", help=text)
    add(
        "--workdir",
        type=flags.output_folder("--workdir"),
        metavar="DIR",
        help="where checkpoints, metrics and plots go",
    )
    text = "trace steps A to B, counted from this start, to WORKDIR/profile"
    add("--profile", type=flags.span, metavar="A:B", help=text)
    add("--print-config", action="store_true", help="show the resolved config and stop")
    flags.add_processes(train)
    text = "change a value of the config; may be given several times"
    add("--config.KEY=VALUE", dest="_", metavar="", help=text)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs the command and returns the exit status."""
    config = elva_jax.load_config(args.config, overrides)
    if args.print_config:
        print(config)
        return 0
    if not args.workdir:
        args.parser.error("the following arguments are required: --workdir")
    # Until the run handles signals there is nothing to save: starting again is right, as after a
    # run that SIGTERM has stopped.
    signals.name_command("elva train", terminated=os.EX_TEMPFAIL)
    process = flags.find_process(args)
    distributed = elva_jax.distributed
    distributed.initialize(
        process,
        distributed.run_fingerprint(config),
        start_timeout=args.start_timeout,
        heartbeat_timeout=args.heartbeat_timeout,
    )
    with distributed.explain_lost_processes():
        return elva_jax.train(config, args.workdir, progress="terminal", profile=args.profile)
