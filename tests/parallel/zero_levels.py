"""Where a compiled step gathers weights and sums gradients, as JSON; run by test_zero.py."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.config import schema
from elva_jax.parallel.mesh import batch_sharding, make_mesh
from elva_jax.parallel.zero import make_zero
from elva_jax.training.step import value_and_grad

LAYERS, WIDTH = 3, 64


def loss(params, _, x_BxD):
    """Layers of a scan over stacked kernels, as in the decoder."""

    def layer(x, kernel):
        return jnp.tanh(x @ kernel.astype(x.dtype)), None

    x_BxD, _ = jax.lax.scan(layer, x_BxD, params["kernel"])
    return jnp.mean(x_BxD.astype(jnp.float32) ** 2), {}


def main():
    config = schema.mesh()
    config.update(data=2, fsdp=4)
    mesh = make_mesh(config)
    stored = {"kernel": NamedSharding(mesh, PartitionSpec(None, "fsdp", None))}
    params = {
        "kernel": jax.ShapeDtypeStruct(
            (LAYERS, WIDTH, WIDTH), jnp.float32, sharding=stored["kernel"]
        )
    }
    batch = jax.ShapeDtypeStruct((32, WIDTH), jnp.bfloat16, sharding=batch_sharding(mesh))
    for level in (3, 2):
        zero = make_zero(level, stored, "bfloat16")
        compiled = (
            jax.jit(lambda p, b, zero=zero: value_and_grad(loss, p, None, b, 2, zero))
            .lower(params, batch)
            .compile()
        )
        loops, entry = compiled.as_text().split("\nENTRY ")
        # The loop over micro-batches carries the sum of gradients, or a shard of it.
        carried = max((line for line in entry.splitlines() if " while(" in line), key=len)
        report = {
            "gathers_per_layer": loops.count(" all-gather("),
            "gathers_per_step": entry.count(" all-gather("),
            "sums_of_shards": f"f32[{LAYERS},{WIDTH // 4},{WIDTH}]" in carried,
            "result": list(compiled.output_shardings[2]["kernel"].spec),
        }
        print(json.dumps({"level": level, **report}))


if __name__ == "__main__":
    main()
