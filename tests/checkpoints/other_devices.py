"""Saves a state on eight fake devices and restores it on other meshes; run by test_save.py."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elva_jax.checkpoints import state as states
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.config import schema

MESHES = [((8, 1), "fsdp"), ((2, 2), "fsdp"), ((1, 4), "tensor"), ((1, 1), "fsdp")]


def mesh_of(shape):
    return Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("fsdp", "tensor"))


def main(folder):
    params = {
        "kernel": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32),
        "bias": np.arange(24, dtype=np.float32),
    }
    shape, _ = MESHES[0]
    placed = jax.device_put(params, NamedSharding(mesh_of(shape), PartitionSpec("fsdp")))
    state = states.create(placed, optax.adam(0.1))
    state = jax.jit(
        lambda s: s.replace(opt_state=jax.tree.map(lambda x: x + 1, s.opt_state), step=s.step + 7)
    )(state)
    with Checkpoints(folder / "checkpoints", keep=0) as checkpoints:
        checkpoints.save(0, state, {}, schema.base(), "any")
        for step, (shape, axis) in enumerate(MESHES[1:], 1):
            mesh = mesh_of(shape)

            def target(leaf, mesh=mesh, axis=axis):
                where = NamedSharding(
                    mesh,
                    PartitionSpec(*[None] * (leaf.ndim - 1), axis)
                    if leaf.ndim
                    else PartitionSpec(),
                )
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

            checkpoints.wait()
            restored, _ = checkpoints.restore(jax.tree.map(target, state))
            for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
                assert two.sharding.mesh.size == mesh.size
                np.testing.assert_array_equal(one, two)
            checkpoints.save(step, restored, {}, schema.base(), "any")
    print(len(jax.devices()), "devices, restored on", [shape for shape, _ in MESHES[1:]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
