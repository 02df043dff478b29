"""The plan of one stage: memory per device, work, traffic, time, and whether it fits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from elva_jax.tasks.base import ModelTask
from elva_jax.tools.plan import estimate
from elva_jax.tools.plan.advice import advice
from elva_jax.tools.plan.hardware import EFFICIENCY, GIB, NETWORK_EFFICIENCY, USABLE, Device
from elva_jax.tools.plan.hlo import Collective
from elva_jax.tools.plan.program import Compiled, compile_stage
from elva_jax.tools.plan.schedule import schedule
from elva_jax.tools.plan.teachers import plan_teachers

DAY = 86_400


def plan_stage(task: ModelTask, mesh: Mesh, device: Device) -> dict[str, Any]:
    """Compiles a stage's step and returns its needs as a JSON-able tree.

    Sizes are bytes per device, times are seconds.

    Raises:
      ConfigError: batch or sequences do not split over the mesh, or the size of the data is
        unknown.
    """
    task.check_mesh(mesh)
    steps, axes = schedule(task), dict(mesh.shape)
    compiled = compile_stage(task.config, task.name, mesh, steps.steps)
    memory = memory_of(task, axes, compiled)
    usable = USABLE * device.memory * GIB
    work = work_of(task, axes, compiled)
    moved = collectives_of(compiled.program.collectives, axes, device)
    seconds = seconds_of(work, moved, device)
    overlapped, one_by_one = max(seconds.values()), sum(seconds.values())
    micro_batch, micro_batches = estimate.rows(task, axes)
    by_hand = None
    if task.decoder_pieces() and axes["context"] == 1:
        by_hand = estimate.activations(task, axes)
    plan = {
        "stage": task.name,
        "mesh": axes,
        "rows": {"micro_batch": micro_batch, "micro_batches": micro_batches},
        "parameters": compiled.counts,
        "memory": memory,
        "usable": usable,
        "fits": memory["total"] <= usable,
        "activations_by_hand": by_hand,
        "flops": work,
        "collectives": moved,
        "seconds": {**seconds, "overlapped": overlapped, "one_by_one": one_by_one},
        "teachers": plan_teachers(task, axes, device),
        "tokens_per_second": [steps.tokens / one_by_one, steps.tokens / overlapped],
        "steps": {"count": steps.steps, "tokens": steps.tokens, "source": steps.source},
        "days": [steps.steps * overlapped / DAY, steps.steps * one_by_one / DAY],
    }
    return plan | {"advice": advice(task, plan, mesh.size)}


def memory_of(task: ModelTask, axes: Mapping[str, int], compiled: Compiled) -> dict[str, int]:
    """Bytes on one device, by purpose."""
    parts = {
        "parameters": compiled.parameters,
        "optimizer": compiled.optimizer,
        "gradients": compiled.gradients,
        "teacher": compiled.teacher,
        "batch": compiled.batch,
        "activations": max(compiled.temporaries - compiled.gradients, 0),
        "mask": estimate.mask_bytes(task, axes),
    }
    return parts | {"total": sum(parts.values())}


def work_of(task: ModelTask, axes: Mapping[str, int], compiled: Compiled) -> dict[str, float]:
    """FLOPs of one device's step by speed, and bytes to and from its memory."""
    trained, parameters = compiled.trained, compiled.parameters
    return {
        "half": compiled.program.half,
        "attention": estimate.attention_flops(task, axes),
        "single": compiled.program.single,
        "memory_bytes": estimate.memory_traffic(task, axes, trained, parameters),
    }


def collectives_of(
    collectives: list[Collective], axes: Mapping[str, int], device: Device
) -> list[dict[str, Any]]:
    """Bytes that one device sends, by kind of collective and by mesh axes."""
    total: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"calls": 0, "host": 0.0, "network": 0.0, "seconds": 0.0}
    )
    for one in collectives:
        members = len(one.group)
        if members < 2:
            continue
        kind = "reduce-scatter" if one.scattered else one.kind
        share = (members - 1) / members
        sent = one.size * {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)
        hosts = len({member // device.per_host for member in one.group})
        local = members // hosts  # members in one host share the traffic to other hosts
        entry = total[kind, _axes_of(one.group, axes)]
        within = sent * one.times if local > 1 else 0.0
        across = sent * one.times / local if hosts > 1 else 0.0
        entry["calls"] += one.times
        entry["host"] += within
        entry["network"] += across
        entry["seconds"] += max(within / device.link, across / device.network) / NETWORK_EFFICIENCY
    rows = [{"kind": kind, "axes": over, **entry} for (kind, over), entry in total.items()]
    return sorted(rows, key=lambda row: -row["seconds"])


def _axes_of(group: tuple[int, ...], axes: Mapping[str, int]) -> str:
    """Names of the mesh axes along which the devices of a group differ."""
    sizes, found = list(axes.values()), []
    for axis, name in enumerate(axes):
        inner = math.prod(sizes[axis + 1 :])
        if len({device // inner % sizes[axis] for device in group}) > 1:
            found.append(name)
    return " x ".join(found)


def seconds_of(
    work: Mapping[str, float], moved: list[dict[str, Any]], device: Device
) -> dict[str, float]:
    """Seconds of a step by limit, each as if it were the only one."""
    products = (work["half"] + work["attention"]) / device.half + work["single"] / device.single
    return {
        "products": products / EFFICIENCY,
        "memory": work["memory_bytes"] / device.bandwidth,
        "collectives": sum(row["seconds"] for row in moved),
    }
