"""The plan of one stage: memory of a device, work, traffic, time, and whether it fits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from elva_jax.tasks.registry import make_task
from elva_jax.tools.plan import estimate
from elva_jax.tools.plan.advice import advice
from elva_jax.tools.plan.hardware import EFFICIENCY, GIB, NETWORK_EFFICIENCY, USABLE, Device
from elva_jax.tools.plan.hlo import Collective
from elva_jax.tools.plan.program import Compiled, compile_stage
from elva_jax.tools.plan.schedule import schedule

DAY = 86_400


def plan_stage(config: ConfigDict, name: str, mesh: Mesh, device: Device) -> dict[str, Any]:
    """Compiles a stage's step and works out what it needs; a JSON-able tree, sizes in bytes a device, times in seconds.

    Raises:
      ConfigError: a batch or sequences that do not split over the mesh, or data whose size nobody knows.
    """
    task = make_task(config, name)
    task.check_mesh(mesh)
    steps = schedule(config, name)
    compiled = compile_stage(config, name, mesh, steps.steps)
    axes = dict(mesh.shape)
    memory = memory_of(config, name, axes, compiled)
    usable = USABLE * device.memory * GIB
    work = work_of(config, name, axes, compiled)
    moved = collectives_of(compiled.program.collectives, axes, device)
    seconds = seconds_of(work, moved, device)
    overlapped, one_by_one = max(seconds.values()), sum(seconds.values())
    plan = {
        "stage": name,
        "mesh": axes,
        "rows": dict(
            zip(("micro_batch", "micro_batches"), estimate.rows(config, name, axes), strict=True)
        ),
        "parameters": compiled.counts,
        "memory": memory,
        "usable": usable,
        "fits": memory["total"] <= usable,
        "activations_by_hand": estimate.activations(config, name, axes)
        if task.decoder_pieces() and axes["context"] == 1
        else None,
        "flops": work,
        "collectives": moved,
        "seconds": {**seconds, "overlapped": overlapped, "one_by_one": one_by_one},
        "tokens_per_second": [steps.tokens / one_by_one, steps.tokens / overlapped],
        "steps": {"count": steps.steps, "tokens": steps.tokens, "source": steps.source},
        "days": [steps.steps * overlapped / DAY, steps.steps * one_by_one / DAY],
    }
    return plan | {"advice": advice(config, plan, mesh.size)}


def memory_of(
    config: ConfigDict, name: str, axes: Mapping[str, int], compiled: Compiled
) -> dict[str, int]:
    """Bytes on one device, by what they are."""
    parts = {
        "parameters": compiled.parameters,
        "optimizer": compiled.optimizer,
        "gradients": compiled.gradients,
        "teacher": compiled.teacher,
        "batch": compiled.batch,
        "activations": max(compiled.temporaries - compiled.gradients, 0),
        "mask": estimate.mask_bytes(config, name, axes),
    }
    return parts | {"total": sum(parts.values())}


def work_of(
    config: ConfigDict, name: str, axes: Mapping[str, int], compiled: Compiled
) -> dict[str, float]:
    """FLOPs of one device's step, by how fast it does them; bytes to and from its memory."""
    return {
        "half": compiled.program.half,
        "attention": estimate.attention_flops(config, name, axes),
        "single": compiled.program.single,
        "memory_bytes": estimate.memory_traffic(
            config, name, axes, compiled.trained, compiled.parameters
        ),
    }


def collectives_of(
    collectives: list[Collective], axes: Mapping[str, int], device: Device
) -> list[dict[str, Any]]:
    """What collectives move, by kind and by the mesh axes that they go over; bytes that one device sends."""
    total: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"calls": 0, "host": 0.0, "network": 0.0, "seconds": 0.0}
    )
    for one in collectives:
        members = len(one.group)
        if members < 2:
            continue
        kind = "reduce-scatter" if one.scattered else one.kind
        sent = one.size * {"all-reduce": 2 * (members - 1) / members, "collective-permute": 1}.get(
            kind, (members - 1) / members
        )
        hosts = len({member // device.per_host for member in one.group})
        together = members // hosts  # of the group in one host: they share what goes to other hosts
        entry = total[kind, _axes_of(one.group, axes)]
        within = sent * one.times if together > 1 else 0.0
        across = sent * one.times / together if hosts > 1 else 0.0
        entry["calls"] += one.times
        entry["host"] += within
        entry["network"] += across
        entry["seconds"] += max(within / device.link, across / device.network) / NETWORK_EFFICIENCY
    rows = [{"kind": kind, "axes": over, **entry} for (kind, over), entry in total.items()]
    return sorted(rows, key=lambda row: -row["seconds"])


def _axes_of(group: tuple[int, ...], axes: Mapping[str, int]) -> str:
    """Names of the mesh axes along which the devices of a group differ."""
    names, sizes = list(axes), list(axes.values())

    def place(device: int) -> list[int]:
        out = []
        for axis in range(len(sizes)):
            out.append(device // math.prod(sizes[axis + 1 :]) % sizes[axis])
        return out

    places = [place(device) for device in group]
    return " x ".join(
        name for axis, name in enumerate(names) if len({at[axis] for at in places}) > 1
    )


def seconds_of(
    work: Mapping[str, float], moved: list[dict[str, Any]], device: Device
) -> dict[str, float]:
    """A step's seconds by what limits them, each as if it were alone."""
    products = (work["half"] + work["attention"]) / device.half + work["single"] / device.single
    return {
        "products": products / EFFICIENCY,
        "memory": work["memory_bytes"] / device.bandwidth,
        "collectives": sum(row["seconds"] for row in moved),
    }
