"""`elva plan`: what a run needs, worked out without the hardware for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elva_jax.commands import flags
from elva_jax.tools.plan.hardware import DEVICES, EFFICIENCY, GIB, USABLE

HELP = """\
Says what the stages of a config need on other hardware: memory of a device by what it is for, FLOPs, traffic, a step's time and the days
of the whole stage, whether it fits, and what to change where it does not. The training step is compiled over as many fake devices;
nothing is allocated, no data set need be there, and two cores are enough.

examples:
  elva plan --config configs/elva.py:size=7b --devices 32 --device-kind a100-80g
  elva plan --config configs/elva.py:size=7b,stage=2 --devices 32 --device-kind h100 --config.mesh.fsdp=8 --config.mesh.data=4
  elva plan --config configs/elva.py:size=1_5b,stage=3 --devices 1 --device-kind a100-80g --json plan.json

Where the numbers come from, and how far to trust them: docs/performance.md, "What a run needs"."""

PARTS = {
    "parameters": "parameters",
    "optimizer": "optimiser",
    "gradients": "gradients",
    "teacher": "teacher",
    "batch": "batch",
    "activations": "activations",
    "mask": "mask",
}


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds it with `command(name, summary, text, run)`, which makes a sub-command of `elva`."""
    plan = command("plan", "work out what a run needs on other hardware", HELP, run)
    plan.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="config file, and the string for its get_config",
    )
    plan.add_argument(
        "--devices",
        type=flags.positive,
        required=True,
        metavar="N",
        help="accelerators of the whole run",
    )
    plan.add_argument(
        "--device-kind",
        choices=list(DEVICES),
        default="a100-80g",
        help="which ones (default: %(default)s)",
    )
    plan.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help="this stage only; may be given again (default: all)",
    )
    plan.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    plan.add_argument(
        "--config.KEY=VALUE",
        dest="_",
        metavar="",
        help="change a value of the config, as often as needed",
    )


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the plan; the exit status is 1 where a stage does not fit.

    Raises:
      ConfigError: a config that cannot work, or a stage that is not in its curriculum.
      ElvaError: a compiled program that cannot be read.
    """
    from elva_jax.config.load import choose, load

    config = load(args.config, overrides)
    names = [choose("--stage", name, list(config.curriculum)) for name in args.stage] or list(
        config.curriculum
    )
    from elva_jax.tools.plan.program import fake_devices

    fake_devices(args.devices)
    from elva_jax.parallel.mesh import make_mesh
    from elva_jax.tools.plan.stage import plan_stage
    from elva_jax.utils.json import save_json

    device, mesh = DEVICES[args.device_kind], make_mesh(config.mesh)
    stages = [plan_stage(config, name, mesh, device) for name in names]
    report = {
        "config": args.config,
        "overrides": list(overrides),
        "devices": args.devices,
        "device": device._asdict(),
        "stages": stages,
    }
    print(show(report))
    if args.json:
        save_json(report, args.json)
    return 0 if all(stage["fits"] for stage in stages) else 1


def show(report: dict[str, Any]) -> str:
    """The tables."""
    from elva_jax.tools.bench.table import text_table

    stages, device = report["stages"], report["device"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in stages[0]["mesh"].items())
    out = [f"{report['config']} on {report['devices']} x {device['name']}, mesh {mesh}"]
    columns = ("stage", "rows", *PARTS.values(), "together", "usable", "fits")
    rows = [
        (
            stage["stage"],
            f"{stage['rows']['micro_batches']} x {stage['rows']['micro_batch']}",
            *(_gib(stage["memory"][part]) for part in PARTS),
            _gib(stage["memory"]["total"]),
            _gib(stage["usable"]),
            "yes" if stage["fits"] else "NO",
        )
        for stage in stages
    ]
    out += [
        f"Memory of a device, GiB; usable is {100 * USABLE:.0f} % of {device['memory']:g}",
        text_table(columns, rows),
    ]
    columns = (
        "stage",
        "steps",
        "PFLOP",
        "products s",
        "memory s",
        "collectives s",
        "step s",
        "tokens/s",
        "days",
    )
    rows = [_time_row(stage) for stage in stages]
    text = f"A step of a device; products at {100 * EFFICIENCY:.0f} % of the peak. From all overlapped to nothing"
    out += [text, text_table(columns, rows)]
    columns = ("stage", "collective", "over", "calls", "GB in a host", "GB between hosts", "s")
    rows = [
        (
            stage["stage"],
            row["kind"],
            row["axes"],
            str(row["calls"]),
            _gb(row["host"]),
            _gb(row["network"]),
            f"{row['seconds']:.2f}",
        )
        for stage in stages
        for row in stage["collectives"]
    ]
    if rows:
        out += ["What one device sends in a step", text_table(columns, rows, words=3)]
    out += [f"{stage['stage']}: {line}" for stage in stages for line in stage["advice"]]
    return "\n\n".join(out)


def _time_row(stage: dict[str, Any]) -> tuple[str, ...]:
    seconds, work = stage["seconds"], stage["flops"]
    return (
        stage["stage"],
        f"{stage['steps']['count']:,}",
        f"{(work['half'] + work['attention'] + work['single']) / 1e15:.2f}",
        f"{seconds['products']:.2f}",
        f"{seconds['memory']:.2f}",
        f"{seconds['collectives']:.2f}",
        f"{seconds['overlapped']:.1f} - {seconds['one_by_one']:.1f}",
        f"{stage['tokens_per_second'][0]:,.0f} - {stage['tokens_per_second'][1]:,.0f}",
        f"{stage['days'][0]:.1f} - {stage['days'][1]:.1f}",
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size else "–"
