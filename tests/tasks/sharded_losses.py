"""Computes every loss and gradient on eight fake devices and on one; see test_losses.py."""

import os
import sys
from functools import partial
from pathlib import Path

os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.models.towers.common import to_pixels
from elva_jax.parallel.mesh import make_mesh, shard_batch
from elva_jax.parallel.sharding import on_mesh
from elva_jax.parallel.zero import make_zero
from elva_jax.tasks.infonce import infonce_loss
from elva_jax.tasks.losses import contrastive_loss, gather_frames, generation_loss, tube_loss
from elva_jax.tasks.video_text import VideoTextTask
from elva_jax.training.setup import set_up
from elva_jax.training.step import value_and_grad
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


def assert_equal(result, alone):
    for (path, value), want in zip(
        jax.tree.leaves_with_path(jax.device_get(result)), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(value, want, atol=1e-5, err_msg=jax.tree_util.keystr(path))


class LinearTowers(VideoTextTask):
    """Two linear maps in place of the towers, whose programs would take longer to compile."""

    def init(self, key):
        box = partial(nn.with_logical_partitioning, names=("embed", None))
        widths = {"vision": 16 * 16 * 3, "text": 8}
        maps = {
            name: {"kernel": box(nn.initializers.ones)(key, (width, C))}
            for name, width in widths.items()
        }
        return {**maps, "contrast": {"log_temperature": jnp.log(0.2)}}

    def features(self, params, batch):
        clips = jnp.mean(to_pixels(batch["pixels"]), axis=1).reshape(len(batch["pixels"]), -1)
        words = jax.nn.one_hot(batch["token_ids"] % 8, 8).mean(axis=1)
        maps = (params[name]["kernel"] for name in ("vision", "text"))
        clip, text = (x @ kernel for x, kernel in zip((clips, words), maps, strict=True))
        return clip, text, params["contrast"]["log_temperature"]


def video_pretraining():
    """InfoNCE in chunks on each device; and micro-batches whose loss is that of the whole batch."""
    tiny = tiny_video_text()
    config, batch = tiny.config(accumulate=2, batch_size=16), tiny.random_batch(16)
    config.mesh.update(data=2, fsdp=4)
    mesh = make_mesh(config.mesh)
    setup = set_up(LinearTowers(config, "videos"), mesh, 1)
    features = np.random.default_rng(1).normal(size=(2, 32, C)).astype(np.float32)

    def loss(clip, text, log_temperature):
        return infonce_loss(clip, text, log_temperature, 3)

    alone = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*features, jnp.log(0.2))
    with on_mesh(mesh, setup.rules):
        split = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        assert_equal(split(*shard_batch(tuple(features), mesh), jnp.log(0.2)), alone)

    params = tiny.random_params(setup.shapes.params)
    task, zero = setup.task, make_zero(3, setup.shardings.params, "float32")

    def whole(params, batch):
        return value_and_grad(task.loss, params, {}, batch, 1)

    def in_parts(params, batch):
        return value_and_grad(task.loss, params, {}, batch, 2, zero, task.look_ahead)

    alone = jax.device_get(jax.jit(whole)(params, batch))
    with on_mesh(mesh, setup.rules):
        params = jax.device_put(params, setup.shardings.params)
        result = jax.jit(in_parts)(params, shard_batch(batch, mesh))
    assert not result[2]["vision"]["kernel"].sharding.is_fully_replicated, (
        "the gradient is not split over fsdp"
    )
    assert_equal(result, alone)


def tiny_video_text():
    """The module tiny_video_text.py, which is not in a package."""
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny_video_text

    return tiny_video_text


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
    assert_equal(result, alone)
    video_pretraining()
    print("equal")


if __name__ == "__main__":
    main()
