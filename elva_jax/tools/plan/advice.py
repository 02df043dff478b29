"""What to change where a stage does not fit, or moves more than it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from elva_jax.tasks.registry import make_task
from elva_jax.tools.plan.hardware import GIB

STATE = ("parameters", "optimizer", "gradients")


def advice(config: ConfigDict, plan: Mapping[str, Any], devices: int) -> list[str]:
    """One line a change, the likeliest first; empty where nothing need change."""
    out = []
    if not plan["fits"]:
        out += _smaller(config, plan, devices)
    seconds = plan["seconds"]
    if plan["fits"] and seconds["collectives"] > seconds["products"]:
        out.append(
            f"collectives ({seconds['collectives']:.1f} s) take longer than the products ({seconds['products']:.1f} s):"
            " fewer micro-batches (optimizer.accumulate), or mesh.fsdp = the devices of one host and mesh.data = the hosts"
        )
    return out


def _smaller(config: ConfigDict, plan: Mapping[str, Any], devices: int) -> list[str]:
    name, memory, usable = plan["stage"], plan["memory"], plan["usable"]
    task, stage, mesh = make_task(config, name), config.stages[name], plan["mesh"]
    state = sum(memory[part] for part in STATE)
    working = memory["activations"] + memory["mask"] + memory["batch"]
    room = usable - state - memory["teacher"]
    out = []
    if room <= 0 or state > working:
        if mesh["data"] > 1:
            out.append(
                f"--config.mesh.fsdp={devices} --config.mesh.data=1: the state ({state / GIB:.1f} GiB) over all devices"
            )
        elif stage.optimizer.freeze:
            out.append(
                "more of stages.*.optimizer.freeze, or more devices: the state alone does not leave enough room"
            )
        else:
            out.append(
                f"more devices, or stages.{name}.optimizer.freeze: the state takes {state / GIB:.1f} GiB of each"
            )
    if config.model.remat != "full" and task.decoder_pieces():
        out.append(
            f"--config.model.remat=full: it is {config.model.remat}; activations are then made again, layer by layer"
        )
    rows = plan["rows"]["micro_batch"]
    if rows > 1 and room > 0:
        parts = next(
            (n for n in (2**k for k in range(1, 12)) if rows % n == 0 and working / n <= room), rows
        )
        key, then = f"stages.{name}.optimizer.accumulate", (usable - room + working / parts) / GIB
        out.append(
            f"--config.{key}={stage.optimizer.accumulate * parts}: {rows // parts} of {rows} rows at a time, about {then:.0f} GiB"
        )
    elif task.decoder_pieces():
        heads = math.gcd(config.model.num_heads, config.model.num_kv_heads * 8)
        tensor = next(
            (n for n in (2, 4, 8) if n > mesh["tensor"] and heads % n == 0 and devices % n == 0),
            None,
        )
        if tensor:
            out.append(f"--config.mesh.tensor={tensor}: one row over {tensor} devices")
        out.append(
            f"a shorter stages.{name}.data.seq_len (it is {stage.data.seq_len}): fewer frames, or smaller ones"
        )
        if stage.merging and not stage.merge_buckets:
            out.append(f"stages.{name}.merge_buckets: without them merged tokens keep their places")
    return out
