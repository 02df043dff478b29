"""A stage's training step, compiled over fake CPU devices without a single weight.

XLA's CPU backend widens bfloat16 to float32 almost everywhere, which GPUs do not. It leaves float16 alone once its own libraries for
matrix products are off, so the step is compiled in float16: the same bytes as bfloat16, in the same places. Attention is the stand-in
`plan.attention.fused_shapes`, which holds what cuDNN's kernel holds, or XLA's own where sequences are split; both are for the sizes alone,
nothing is ever run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from elva_jax.errors import ElvaError
from elva_jax.models.build import parameter_shapes
from elva_jax.ops.attention import replaced_by
from elva_jax.parallel.mesh import batch_sharding, replicated
from elva_jax.tasks.base import Task
from elva_jax.tasks.registry import make_task
from elva_jax.tools.plan import hlo
from elva_jax.tools.plan.attention import fused_shapes
from elva_jax.training.optimizer import trained_part
from elva_jax.training.setup import set_up
from elva_jax.training.step import TrainStep
from elva_jax.utils.trees import unflatten_paths

COMPILER = {
    "xla_cpu_strict_dot_conv_math": True,  # products stay in the type they are written in
    "xla_cpu_experimental_ynn_fusion_type": "",  # and are not handed to a library that widens them
    "xla_cpu_enable_concurrency_optimized_scheduler": False,  # the order that needs least memory, as on GPUs
    "xla_backend_optimization_level": 0,  # no time for machine code that never runs
    "xla_llvm_disable_expensive_passes": True,
}


class Compiled(NamedTuple):
    """A stage's step, by device; sizes in bytes."""

    parameters: int
    trained: int  # part of `parameters`: those that have a gradient
    optimizer: int
    teacher: int
    batch: int
    gradients: int  # of one micro-batch, and beside them their sum where there are several
    temporaries: int  # all that the program holds for a while, gradients among it
    counts: dict[str, int]  # numbers of parameters of the whole model: all, trained
    program: hlo.Program


def fake_devices(count: int) -> None:
    """Makes the CPU look like `count` devices; JAX must not have started.

    Raises:
      ElvaError: it has, with another number of them.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass
    if jax.device_count() != count:
        raise ElvaError(
            f"JAX has started with {jax.device_count()} device(s) already; plan for {count} in a process of its own"
        )


def compile_stage(config: ConfigDict, name: str, mesh: Mesh, steps: int) -> Compiled:
    """Compiles the training step of stage `name` for `mesh`."""
    config = ConfigDict(config.to_dict())
    # The teacher keeps its type: JAX has no attention in float16 for CPUs.
    for group, key in ((config.model, "dtype"), (config.stages[name].optimizer, "frozen_dtype")):
        group[key] = {"bfloat16": "float16"}.get(group[key], group[key])
    setup = set_up(make_task(config, name), mesh, steps)
    frozen, batch = teacher_shapes(setup.task, mesh), batch_shapes(setup.task, mesh)
    step = TrainStep(setup)
    # cuDNN's kernel, whose stand-in it is, does not run where sequences are split.
    whole = mesh.shape["context"] == 1
    with replaced_by(fused_shapes) if whole else contextlib.nullcontext():
        traced = step.trace(setup.shapes, frozen, batch)
    compiled = traced.lower().compile(compiler_options=COMPILER)
    memory = compiled.memory_analysis()
    params = setup.shapes.params
    moving = trained_part(params, setup.optimizer.labels)
    gradients = local_bytes(moving)
    return Compiled(
        parameters=local_bytes(params),
        trained=gradients,
        optimizer=local_bytes(setup.shapes.opt_state),
        teacher=local_bytes(frozen),
        batch=local_bytes(batch),
        gradients=gradients * (2 if config.stages[name].optimizer.accumulate > 1 else 1),
        # What goes out is what came in, but for the metrics: the state is donated.
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        counts={"all": _count(params), "trained": _count(moving)},
        program=hlo.read(compiled.as_text(), mesh.size),
    )


def batch_shapes(task: Task, mesh: Mesh) -> dict[str, Any]:
    """The batch of a task as shapes, split over the mesh."""
    where = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        task.batch_shapes(),
    )


def teacher_shapes(task: Task, mesh: Mesh) -> dict[str, Any]:
    """The frozen trees of a task as shapes: the teacher's vision tower on every device, or nothing."""
    if not task.uses_teacher:
        return {}
    where, shapes = replicated(mesh), parameter_shapes(task.config, "vision")
    leaves = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
        for path, shape in shapes.items()
    }
    return {"teacher": unflatten_paths(leaves)["vision"]}


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""

    def one(leaf: jax.ShapeDtypeStruct) -> int:
        size = leaf.dtype.itemsize
        for part in leaf.sharding.shard_shape(leaf.shape):
            size *= part
        return size

    return sum(map(one, jax.tree.leaves(tree)))


def _count(tree: Mapping[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
