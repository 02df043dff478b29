"""Compares losses and gradients on a mesh with one device: `python …/equality.py CASE …`.

A CASE is STAGE:AXIS=SIZE,…[,zero=LEVEL][,accumulate=N]; `all` runs the whole matrix of
docs/cluster.md. Every process compares what its own devices hold and prints a line of JSON per
case. For fake devices on a CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import argparse
import functools
import itertools
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from elva_jax.config.schema import TeacherConfig
from elva_jax.config.serialize import typed
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.parallel import distributed
from elva_jax.parallel.launchers import detect_process
from elva_jax.parallel.mesh import AXES, describe_mesh, make_mesh, shard_batch
from elva_jax.parallel.sharding import activation_rules, on_mesh, parameter_shardings
from elva_jax.parallel.zero import make_zero
from elva_jax.tasks.evaluators.program import ScoreRows
from elva_jax.tasks.registry import make_task
from elva_jax.training import step
from elva_jax.training.setup import set_up
from elva_jax.utils.trees import key_path

tree_leaves = jax.tree_util.tree_leaves_with_path
STAGES = ("image", "video", "sft")
ROWS = 8
FAST = {"xla_backend_optimization_level": 0}


def matrix(devices: int, inner: int) -> list[str]:
    """All stages, levels of ZeRO, and meshes with context x tensor <= `inner`."""
    sizes = [2**k for k in range(devices.bit_length())]
    cases = []
    for shape in itertools.product(sizes, repeat=len(AXES)):
        if np.prod(shape) != devices or shape[2] * shape[3] > inner:
            continue
        axes = ",".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        for stage, zero in itertools.product(STAGES, (3, 2) if shape[1] > 1 else (3,)):
            cases.append(f"{stage}:{axes},zero={zero}")
            if shape[0] * shape[1] <= ROWS // 2 and shape[1] == 2:
                cases.append(f"{stage}:{axes},zero={zero},accumulate=2")
    return cases


def toy(stage: str):
    """Configuration, task and a batch of packed rows; stage 3 merges into a bucket."""
    tiny = SimpleNamespace(
        **runpy.run_path(str(Path(__file__).parents[1] / "training" / "tiny_run.py"))
    )
    config = tiny.get_config()
    config.stages[stage].batch_size = ROWS
    if stage == "sft":
        config.stages[stage].merge_buckets = (128,)
    task = make_task(config, stage)
    return config, task, task.prepare(tiny.random_batch(config, stage))


@functools.cache
def weights(stage: str):
    """Parameters and teacher, the same in every process, without compiling a program."""
    config, task, _ = toy(stage)
    side = config.teacher.image_size
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        name = key_path(path)
        middle = (
            1.0
            if name.endswith("scale")
            else np.log(0.1)
            if name.endswith("log_temperature")
            else 0.0
        )
        return (middle + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    tower = jax.eval_shape(
        SiglipVision(typed(TeacherConfig, config.teacher)).init,
        jax.random.key(0),
        jnp.zeros((1, side, side, 3)),
    )
    shapes = (jax.eval_shape(task.init, jax.random.key(0)), {"teacher": tower["params"]})
    return jax.tree_util.tree_map_with_path(drawn, nn.meta.unbox(shapes))


@functools.cache
def alone(stage: str, accumulate: int, folder: Path | None):
    """Loss and gradient on one device, stored in `folder` for other processes."""
    _, task, batch = toy(stage)
    params, frozen = weights(stage)
    file = folder and folder / f"{stage}-{accumulate}.npz"
    if file is None or not file.exists():
        program = jax.jit(
            lambda p, f, b: step.value_and_grad(task.loss, p, f, b, accumulate)[::2],
            compiler_options=FAST,
        )
        loss, grads = jax.device_get(program(params, frozen, batch))
        if file is None:
            return loss, grads
        np.savez(file, loss, *jax.tree.leaves(grads))
    with np.load(file) as saved:
        loss, *leaves = (saved[name] for name in saved.files)
    return loss, jax.tree.unflatten(jax.tree.structure(params), leaves)


def scored(task, mesh, params, frozen, rows) -> float:
    """The loss on answers as an evaluation during training measures it."""
    score = ScoreRows(set_up(task, mesh, 1), task, merging=task.stage.merging, features=False)
    numbers = jax.process_index() * ROWS + np.arange(len(rows["patches"]), dtype=np.int32)
    out = score(params, frozen, {**rows, "row": numbers})
    assert out["overflow"] == 0
    return float(np.sum(out["nll"] * out["weight"]) / np.sum(out["weight"]))


def compare(case: str, folder: Path | None = None) -> dict:
    """Runs one case, and measures differences on this process's shards."""
    stage, _, words = case.partition(":")
    values = {
        name: int(value) for name, _, value in (word.partition("=") for word in words.split(","))
    }
    config, task, batch = toy(stage)
    accumulate = values.pop("accumulate", 1)
    config.mesh.update({"data": 1, **values})
    mesh = make_mesh(config.mesh)
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    shardings = parameter_shardings(boxed, mesh, task.logical_sizes)
    params, frozen = weights(stage)
    placed = jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(
            leaf.shape, where, lambda index: leaf[index]
        ),
        params,
        shardings,
    )
    zero = make_zero(config.mesh.zero, shardings, config.model.dtype)
    rows = ROWS // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    program = jax.jit(
        lambda p, f, b: step.value_and_grad(task.loss, p, f, b, accumulate, zero)[::2],
        compiler_options=FAST,
    )
    inputs = (placed, frozen, shard_batch(jax.tree.map(lambda x: x[mine], batch), mesh))
    with on_mesh(mesh, activation_rules(boxed, mesh, task.logical_sizes)):
        compiled = program.lower(*inputs).compile()
    if folder is None or jax.process_index() == 0:
        alone(stage, accumulate, folder)
    distributed.barrier(case)  # processes compile at different speeds; then the file is whole
    want_loss, want = alone(stage, accumulate, folder)
    loss, grads = compiled(*inputs)
    where, worst, largest, pinned = "", 0.0, 0.0, True
    leaves = zip(tree_leaves(grads), jax.tree.leaves(want), jax.tree.leaves(shardings), strict=True)
    for (path, leaf), whole, stored in leaves:
        pinned &= leaf.sharding.is_equivalent_to(stored, leaf.ndim)
        largest = max(largest, float(np.abs(whole).max()))
        for shard in leaf.addressable_shards:
            error = float(np.abs(np.asarray(shard.data) - whole[shard.index]).max())
            if not error <= worst:
                where, worst = key_path(path), error
    relative = abs(float(loss) - float(want_loss)) / abs(float(want_loss))
    held_out = 0.0
    if stage == "sft":  # whose loss is that of the answers alone
        found = scored(task, mesh, placed, frozen, jax.tree.map(lambda x: x[mine], batch))
        held_out = abs(found - float(want_loss)) / abs(float(want_loss))
    split = {
        key_path(path): len({str(piece.index) for piece in leaf.addressable_shards})
        for path, leaf in tree_leaves(placed)
    }
    return {
        "case": case,
        "loss": relative,
        "held_out": held_out,
        "worst": worst,
        "where": where,
        "largest": largest,
        "pinned": pinned,
        "split": split,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--folder", type=Path, help="where the results of one device are stored")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--process-id", type=int, default=0)
    args = parser.parse_args()
    if args.coordinator:
        distributed.initialize(
            detect_process(
                {},
                coordinator=args.coordinator,
                num_processes=args.num_processes,
                process_id=args.process_id,
            ),
            {"cases": args.cases},
        )
        # Inner axes stay within a process; along data and fsdp, processes follow each other.
        mesh = make_mesh(
            ConfigDict({"data": args.num_processes, "fsdp": -1, "context": 1, "tensor": 1})
        )
        for index, row in enumerate(mesh.devices):
            assert {device.process_index for device in row.flat} == {index}, describe_mesh(mesh)
        assert describe_mesh(mesh).endswith(
            f"data {args.num_processes} (across processes), fsdp {jax.local_device_count()}"
        ), describe_mesh(mesh)
    cases = (
        matrix(jax.device_count(), jax.local_device_count())
        if args.cases == ["all"]
        else args.cases
    )
    for case in cases:
        print(json.dumps(compare(case, args.folder)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
