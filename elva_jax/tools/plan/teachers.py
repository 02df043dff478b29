"""Memory and time of each frozen teacher of a stage, from shapes alone.

parameters  4 bytes each, whole on every device
features    [rows, frames, grid, grid, width] of one micro-batch, in the compute type
products    frames x a forward pass over one; clips x one over a clip
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from elva_jax.config.teachers import with_teacher
from elva_jax.models.build import parameter_shapes
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.guidance import tower_flops
from elva_jax.tools.plan import estimate
from elva_jax.tools.plan.hardware import EFFICIENCY, Device
from elva_jax.training.task import Content


def plan_teachers(task: ModelTask, mesh: Mapping[str, int], device: Device) -> list[dict[str, Any]]:
    """The needs of each teacher on one device, in bytes, FLOPs and seconds of a step."""
    frames, clips = task.stage.data.max_frames, estimate.clips(task)
    micro, times = estimate.rows(task, mesh)
    rows = micro * times
    out = []
    for name, teacher in task.teachers.items():
        shapes = parameter_shapes(with_teacher(task.config, teacher), "vision")
        size = jnp.dtype(teacher.dtype).itemsize
        work = tower_flops(teacher, Content(frames=frames * rows, clips=clips * rows))
        speed = device.single if teacher.dtype == "float32" else device.half
        seen = f"{clips} clips of {teacher.num_frames}" if teacher.num_frames > 1 else f"{frames}"
        out.append(
            {
                "name": name,
                "kind": teacher.kind,
                "weight": teacher.weight,
                "frames_of_a_row": seen,
                "parameters": 4 * sum(math.prod(shape) for shape in shapes.values()),
                "features": micro * frames * teacher.grid**2 * teacher.hidden_size * size,
                "flops": work,
                "seconds": work / speed / EFFICIENCY,
            }
        )
    return out
