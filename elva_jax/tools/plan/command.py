"""`elva plan`: the needs of a run, computed without its hardware."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from elva_jax.commands import flags
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.plan import inference_command
from elva_jax.tools.plan.hardware import DEVICES, EFFICIENCY, GIB, USABLE
from elva_jax.utils import numbers
from elva_jax.utils.json import save_json

HELP = """\
Prints the needs of a config's stages on other hardware: memory per device by purpose, FLOPs,
traffic, the time of a step and of the whole stage, whether it fits, and what to change if it does
not. The training step is compiled over as many fake devices. Nothing is allocated, no data set is
needed, and two cores are enough.

With --inference it prints the memory that answering takes on one card, with weights in the compute
type, int8 and int4, how many frames fit, and what to change.

examples:
  elva plan --config configs/elva.py:size=7b --devices 32 --device-kind a100-80g
  elva plan --config configs/elva.py:size=7b,stage=2 --devices 32 --config.mesh.fsdp=8
  elva plan --config configs/elva.py:size=1_5b,stage=3 --devices 1 --json plan.json
  elva plan --inference --config configs/elva.py:size=7b --frames 64 --edge 336 --memory 24,16,12

docs/plan.md explains where the numbers come from, and how far to trust them."""

PARTS = ("parameters", "optimizer", "gradients", "teacher", "batch", "activations", "mask")


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `plan` with `command(name, text, run)`, which makes a sub-command."""
    parser = command("plan", HELP, run)
    add = parser.add_argument
    text = "config file, and the string for its get_config"
    add("--config", metavar="FILE.py[:ARG]", help=text)
    text = "accelerators of the whole run"
    add("--devices", type=numbers.whole(1, 65_536), metavar="N", help=text)
    text = "their kind (default: %(default)s)"
    add("--device-kind", choices=list(DEVICES), default="a100-80g", help=text)
    text = "plan this stage only; can be repeated (default: all stages)"
    add("--stage", action="append", default=[], metavar="NAME", help=text)
    file = flags.output_file("--json")
    add("--json", type=file, metavar="FILE", help="write all numbers here")
    text = "change a value of the config; can be repeated"
    add("--config.KEY=VALUE", dest="_", metavar="", help=text)
    inference_command.add_inference(parser)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the plan; the exit status is 1 if a stage does not fit.

    Raises:
      ConfigError: a config that cannot work, or a stage that is not in its curriculum.
      ElvaError: a compiled program that cannot be read.
    """
    if args.inference:
        if (args.config is None) == (args.checkpoint is None):
            args.parser.error("--inference needs --config or --checkpoint")
        return inference_command.run(args, overrides)
    missing = [f"--{name}" for name in ("config", "devices") if getattr(args, name) is None]
    if missing:
        args.parser.error(f"the following arguments are required: {', '.join(missing)}")
    from elva_jax.config.load import choose, load, resolve
    from elva_jax.parallel.mesh import make_mesh
    from elva_jax.tasks.registry import make_task
    from elva_jax.tools.plan.program import fake_devices
    from elva_jax.tools.plan.stage import plan_stage

    config = resolve(load(args.config, overrides))
    curriculum = list(config.curriculum)
    names = [choose("--stage", name, curriculum) for name in args.stage] or curriculum
    fake_devices(args.devices)
    device, mesh = DEVICES[args.device_kind], make_mesh(config.mesh)
    stages = [plan_stage(make_task(config, name), mesh, device) for name in names]
    report = {
        "config": args.config,
        "overrides": list(overrides),
        "devices": args.devices,
        "device": dataclasses.asdict(device),
        "stages": stages,
    }
    print(show(report))
    if args.json:
        save_json(report, args.json)
    return 0 if all(stage["fits"] for stage in stages) else 1


def show(report: dict[str, Any]) -> str:
    """Formats the report: tables of memory, time and collectives, and the advice."""
    stages, device = report["stages"], report["device"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in stages[0]["mesh"].items())
    out = [
        f"{report['config']} on {report['devices']} x {device['name']}, mesh {mesh}",
        f"Memory of a device, GiB; usable is {100 * USABLE:.0f} % of {device['memory']:g}",
        _memory_table(stages),
        f"A step of a device; products at {100 * EFFICIENCY:.0f} % of the peak. "
        "From all overlapped to nothing",
        _time_table(stages),
    ]
    if any(stage["teachers"] for stage in stages):
        out += ["Each teacher on a device", _teachers_table(stages)]
    if any(stage["collectives"] for stage in stages):
        out += ["What one device sends in a step", _collectives_table(stages)]
    out += [f"{stage['stage']}: {line}" for stage in stages for line in stage["advice"]]
    return "\n\n".join(out)


def _memory_table(stages: list[dict[str, Any]]) -> str:
    rows = [
        (
            stage["stage"],
            "{micro_batches} x {micro_batch}".format(**stage["rows"]),
            *(_gib(stage["memory"][part]) for part in (*PARTS, "total")),
            _gib(stage["usable"]),
            "yes" if stage["fits"] else "NO",
        )
        for stage in stages
    ]
    return text_table(("stage", "rows", *PARTS, "together", "usable", "fits"), rows)


def _time_table(stages: list[dict[str, Any]]) -> str:
    times = ("products", "memory", "collectives")
    rows = []
    for stage in stages:
        seconds, work, days = stage["seconds"], stage["flops"], stage["days"]
        slow, fast = stage["tokens_per_second"]
        rows.append(
            (
                stage["stage"],
                f"{stage['steps']['count']:,}",
                f"{(work['half'] + work['attention'] + work['single']) / 1e15:.2f}",
                *(f"{seconds[name]:.2f}" for name in times),
                f"{seconds['overlapped']:.1f} - {seconds['one_by_one']:.1f}",
                f"{slow:,.0f} - {fast:,.0f}",
                f"{days[0]:.1f} - {days[1]:.1f}",
            )
        )
    limits = (f"{name} s" for name in times)
    return text_table(("stage", "steps", "PFLOP", *limits, "step s", "tokens/s", "days"), rows)


def _teachers_table(stages: list[dict[str, Any]]) -> str:
    rows = [
        (
            stage["stage"],
            row["name"],
            row["kind"],
            row["frames_of_a_row"],
            _gib(row["parameters"]),
            _gib(row["features"]),
            f"{row['flops'] / 1e15:.2f}",
            f"{row['seconds']:.2f}",
        )
        for stage in stages
        for row in stage["teachers"]
    ]
    columns = ("stage", "teacher", "kind", "frames of a row", "parameters", "features", "PFLOP")
    return text_table((*columns, "s"), rows, words=4)


def _collectives_table(stages: list[dict[str, Any]]) -> str:
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
    columns = ("stage", "collective", "over", "calls", "GB in a host", "GB between hosts", "s")
    return text_table(columns, rows, words=3)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size else "–"
