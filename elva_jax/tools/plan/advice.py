"""Suggests changes to a stage that does not fit, or communicates longer than it computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.tasks.base import ModelTask
from elva_jax.tools.plan.hardware import GIB

STATE = ("parameters", "optimizer", "gradients")


def advice(task: ModelTask, plan: Mapping[str, Any], devices: int) -> list[str]:
    """One line per change, the most promising first; empty if nothing needs to change."""
    if not plan["fits"]:
        return [*_shrink_state(task, plan, devices), *_shrink_activations(task, plan, devices)]
    collectives, products = (plan["seconds"][name] for name in ("collectives", "products"))
    if collectives <= products:
        return []
    return [
        f"collectives ({collectives:.1f} s) take longer than the products ({products:.1f} s):"
        " fewer micro-batches (optimizer.accumulate), or mesh.fsdp = the devices of one host"
        " and mesh.data = the hosts"
    ]


def _state_bytes(plan: Mapping[str, Any]) -> int:
    return sum(plan["memory"][part] for part in STATE)


def _working_bytes(plan: Mapping[str, Any]) -> int:
    return sum(plan["memory"][part] for part in ("activations", "mask", "batch"))


def _free_bytes(plan: Mapping[str, Any]) -> float:
    """Memory beside the state and the teacher; negative if these alone do not fit."""
    return plan["usable"] - _state_bytes(plan) - plan["memory"]["teacher"]


def _shrink_state(task: ModelTask, plan: Mapping[str, Any], devices: int) -> Iterator[str]:
    state = _state_bytes(plan)
    if _free_bytes(plan) > 0 and state <= _working_bytes(plan):
        return
    if plan["mesh"]["data"] > 1:
        share = f"the state ({state / GIB:.1f} GiB) over all devices"
        yield f"--config.mesh.fsdp={devices} --config.mesh.data=1: {share}"
    elif task.stage.optimizer.freeze:
        freeze = "more of stages.*.optimizer.freeze, or more devices"
        yield f"{freeze}: the state alone does not leave enough memory"
    else:
        freeze = f"more devices, or stages.{task.name}.optimizer.freeze"
        yield f"{freeze}: the state takes {state / GIB:.1f} GiB of each"


def _shrink_activations(task: ModelTask, plan: Mapping[str, Any], devices: int) -> Iterator[str]:
    model, stage, name = task.config.model, task.stage, task.name
    has_decoder = bool(task.decoder_pieces())
    if model.remat != "full" and has_decoder:
        yield (
            f"--config.model.remat=full: it is {model.remat}; "
            "activations are then recomputed, layer by layer"
        )
    rows, free, working = plan["rows"]["micro_batch"], _free_bytes(plan), _working_bytes(plan)
    if rows > 1 and free > 0:
        divisors = (n for n in (2**k for k in range(1, 12)) if rows % n == 0)
        parts = next((n for n in divisors if working / n <= free), rows)
        total = (plan["usable"] - free + working / parts) / GIB
        yield (
            f"--config.stages.{name}.optimizer.accumulate={stage.optimizer.accumulate * parts}: "
            f"{rows // parts} of {rows} rows at a time, about {total:.0f} GiB"
        )
    elif has_decoder:
        heads = math.gcd(model.num_heads, model.num_kv_heads * 8)
        larger = (n for n in (2, 4, 8) if n > plan["mesh"]["tensor"])
        tensor = next((n for n in larger if heads % n == 0 and devices % n == 0), None)
        if tensor:
            yield f"--config.mesh.tensor={tensor}: one row over {tensor} devices"
        yield (
            f"a shorter stages.{name}.data.seq_len (it is {stage.data.seq_len}): "
            "fewer frames, or smaller ones"
        )
        if stage.merging and not stage.merge_buckets:
            yield f"stages.{name}.merge_buckets: without them merged tokens keep their places"
