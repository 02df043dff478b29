"""Computes every loss and gradient on eight fake devices and on one; see test_losses.py."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.tasks.losses import contrastive_loss, gather_frames, generation_loss, tube_loss
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, pack

jax.config.update("jax_numpy_rank_promotion", "raise")
B, S, C, V = 8, 40, 5, 16


def total(hidden, teacher, kernel, log_temperature, layout):
    slots, valid = gather_frames(hidden, layout, 4)
    teacher_frames, _ = gather_frames(teacher, layout, 4)
    contrast, contrast_metrics = contrastive_loss(slots, teacher_frames, valid, log_temperature)
    tube, tube_metrics = tube_loss(hidden, teacher, layout)
    generation, metrics = generation_loss(
        hidden, lambda h: h @ kernel, layout.target, layout.loss_weight, 16
    )
    return contrast + tube + generation, {
        "contrast": contrast,
        "tube": tube,
        **contrast_metrics,
        **tube_metrics,
        **metrics,
    }


def main():
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    rows = [
        build_layout([Clip([(2, 2)] * (k % 4)), Text([1]), Text([2, 3 + k % 3], weight=1.0)])
        for k in range(B)
    ]  # numbers of frames differ between devices
    layout = TokenLayout(
        *(np.stack(fields) for fields in zip(*(pack([row], S) for row in rows), strict=True))
    )
    hidden, teacher = rng.normal(size=(2, B, S, C)).astype(np.float32)
    kernel = rng.normal(size=(C, V)).astype(np.float32)
    step = jax.jit(jax.value_and_grad(total, (0, 2, 3), has_aux=True))
    alone = jax.device_get(step(hidden, teacher, kernel, jnp.log(0.07), layout))

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    hidden, teacher, layout = jax.device_put((hidden, teacher, layout), split)
    whole = jax.device_put((kernel, jnp.log(0.07)), NamedSharding(mesh, PartitionSpec()))
    result = step(hidden, teacher, *whole, layout)
    assert len(result[1][0].sharding.device_set) == 8, "the gradient does not live on eight devices"
    for path_value, want in zip(
        jax.tree.leaves_with_path(jax.device_get(result)), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(
            path_value[1], want, atol=1e-5, err_msg=jax.tree_util.keystr(path_value[0])
        )
    print("equal")


if __name__ == "__main__":
    main()
