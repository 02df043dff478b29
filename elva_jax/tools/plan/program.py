"""Compiles a stage's training step over fake CPU devices, without any weights.

    config -> task -> shapes with shardings -> trace -> compile for the CPU -> sizes, program text

The step is compiled in float16, because XLA's CPU backend widens bfloat16 to float32. Attention is
`plan.attention.fused_shapes`, with the memory of cuDNN's kernel, where a GPU would run that. The
program is never run. docs/plan.md explains all of this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from elva_jax.config.schema import Config
from elva_jax.config.serialize import typed
from elva_jax.config.teachers import with_teacher
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.errors import ElvaError
from elva_jax.models.build import parameter_shapes
from elva_jax.ops.attention import replaced_by
from elva_jax.parallel.mesh import batch_sharding, replicated
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.registry import make_task, task_of
from elva_jax.tools.plan import estimate, hlo
from elva_jax.tools.plan.attention import fused_shapes
from elva_jax.training.optimizer import trained_part
from elva_jax.training.setup import set_up
from elva_jax.training.step import TrainStep
from elva_jax.utils.trees import unflatten_paths

COMPILER = {
    "xla_cpu_strict_dot_conv_math": True,  # keeps the type of products
    "xla_cpu_experimental_ynn_fusion_type": "",  # no library that widens products
    # The order of operations that needs the least memory, as on GPUs.
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
    "xla_backend_optimization_level": 0,  # the machine code never runs
    "xla_llvm_disable_expensive_passes": True,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A stage's step on one device; sizes in bytes."""

    parameters: int
    trained: int  # part of `parameters` with a gradient
    optimizer: int
    teacher: int
    batch: int
    gradients: int  # of one micro-batch; twice that if there are several, for their sum
    temporaries: int  # of the program, including the gradients
    counts: dict[str, int]  # parameters of the whole model: all, trained
    program: hlo.Program


def fake_devices(count: int) -> None:
    """Makes the CPU look like `count` devices, before JAX has started.

    Raises:
      ElvaError: JAX has started with another number of devices.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() != count:
        raise ElvaError(
            f"JAX has already started with {jax.device_count()} device(s); "
            f"plan for {count} in a separate process"
        )


def compile_stage(config: ConfigDict | Config, name: str, mesh: Mesh, steps: int) -> Compiled:
    """Compiles the training step of stage `name` for `mesh`."""
    config = _in_float16(typed(Config, config), name)
    task = make_task(config, name)
    setup = set_up(task, mesh, steps)
    frozen, batch = teacher_shapes(task, mesh), batch_shapes(task, mesh)
    step = TrainStep(setup)
    with replaced_by(fused_shapes):
        traced = step.trace(setup.shapes, frozen, batch)
    compiled = traced.lower().compile(compiler_options=COMPILER)
    memory: Any = compiled.memory_analysis()
    params = setup.shapes.params
    trained = trained_part(params, setup.optimizer.labels)
    gradients = local_bytes(trained)
    several = config.stages[name].optimizer.accumulate > 1
    return Compiled(
        parameters=local_bytes(params),
        trained=gradients,
        optimizer=local_bytes(setup.shapes.opt_state),
        teacher=local_bytes(frozen),
        batch=local_bytes(batch),
        gradients=gradients * (2 if several else 1),
        # The state is donated: outputs that alias no input are the metrics.
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        counts={"all": _count(params), "trained": _count(trained)},
        program=hlo.read(compiled.as_text(), mesh.size, open_trips=_open_trips(task)),
    )


def _open_trips(task: ModelTask) -> int:
    """How often the loop over the videos of a row runs; 0: no teacher sees clips."""
    return estimate.clips(task) if TeacherFrames.of(task.teachers.values()).media else 0


def _in_float16(config: Config, name: str) -> Config:
    """The configuration with float16 in place of bfloat16 in what is trained or frozen.

    A teacher that guides keeps its type: its attention is XLA's, which has no float16 on a CPU.
    """

    def half(dtype: str) -> Any:
        return "float16" if dtype == "bfloat16" else dtype

    stage, model = config.stages[name], config.model
    frozen_dtype = half(stage.optimizer.frozen_dtype)
    optimizer = dataclasses.replace(stage.optimizer, frozen_dtype=frozen_dtype)
    stages = {**config.stages, name: dataclasses.replace(stage, optimizer=optimizer)}
    model = dataclasses.replace(model, dtype=half(model.dtype))
    teacher = config.teacher
    if task_of(stage).exports == "vision":
        teacher = dataclasses.replace(teacher, dtype=half(teacher.dtype))
    return dataclasses.replace(config, model=model, teacher=teacher, stages=stages)


def batch_shapes(task: ModelTask, mesh: Mesh) -> dict[str, Any]:
    """The shapes of a task's batch, split over the mesh."""
    where = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        task.batch_shapes(),
    )


def teacher_shapes(task: ModelTask, mesh: Mesh) -> dict[str, Any]:
    """The shapes of a task's frozen trees: the teachers' vision towers on every device."""
    where, trees = replicated(mesh), {}
    for name, teacher in task.teachers.items():
        shapes = parameter_shapes(with_teacher(task.config, teacher), "vision")
        leaves = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
            for path, shape in shapes.items()
        }
        trees[name] = unflatten_paths(leaves)["vision"]
    return trees


def local_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def _count(tree: Mapping[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
