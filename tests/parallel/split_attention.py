"""A sequence over four devices, compared with one device; run by test_split_attention.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.config import schema
from elva_jax.ops.attention import packed_attention
from elva_jax.ops.attention.blocked import LARGE_BLOCK
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tools.plan import hlo

LENGTH = 5200  # a quarter is a little more than five blocks of queries
ROWS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 8
SPLIT = PartitionSpec("fsdp", "context", None)


def loss(q, k, v, segment, turn, cotangent, split):
    out = packed_attention(q, k, v, segment, turn, implementation="xla", split=split)
    return jnp.sum(out * cotangent)


def main():
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(ROWS, LENGTH, count, WIDTH)).astype(np.float32)
        for count in (HEADS, KV_HEADS, KV_HEADS)
    ]
    segment = np.sort(rng.integers(0, 4, (ROWS, LENGTH)).astype(np.int32))[
        :, ::-1
    ]  # padding at the end
    turn = np.sort(rng.integers(0, 3, (ROWS, LENGTH)).astype(np.int32))
    cotangent = rng.normal(size=arrays[0].shape).astype(np.float32) * (segment > 0)[..., None, None]
    inputs = (*arrays, segment, turn, cotangent)
    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
    want = jax.jit(lambda *args: gradient(*args, PartitionSpec(None, None, None)))(*inputs)

    config = schema.mesh()
    config.update(data=1, fsdp=2, context=4)
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x, NamedSharding(mesh, PartitionSpec(*SPLIT[: min(x.ndim, 2)])))
            for x in inputs
        ]
        compiled = jax.jit(lambda *args: gradient(*args, SPLIT)).lower(*placed).compile()
        got = compiled(*placed)
    program = hlo.read(compiled.as_text(), mesh.size)
    report = {
        "errors": [
            float(jnp.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(want)[1:], jax.tree.leaves(got)[1:], strict=True)
        ],
        "loss": [float(want[0]), float(got[0])],
        "scores_of_a_block": 4 * HEADS * LARGE_BLOCK * LENGTH,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "collectives": sorted(
            (one.kind, one.times, one.size) for one in program.collectives if len(one.group) > 1
        ),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
