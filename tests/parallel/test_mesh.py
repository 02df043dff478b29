"""Meshes of the available devices, and batches on them."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from elva_jax.config import schema
from elva_jax.errors import ConfigError
from elva_jax.parallel.mesh import (
    AXES,
    check_batch,
    check_length,
    describe_mesh,
    make_mesh,
    shard_batch,
)


def mesh_config(**sizes):
    config = schema.mesh()
    config.update(sizes)
    return config


def test_one_device_by_default():
    assert dict(make_mesh(schema.mesh()).shape) == {
        "data": jax.device_count(),
        "fsdp": 1,
        "context": 1,
        "tensor": 1,
    }


@pytest.mark.parametrize(
    "sizes", [{"tensor": 7}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": 64}]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ConfigError, match=r"^mesh: data="):
        make_mesh(mesh_config(**sizes))


def test_a_batch_must_split():
    mesh = make_mesh(schema.mesh())
    check_batch(mesh, 6 * jax.device_count(), 2, "stages.video.batch_size")
    with pytest.raises(
        ConfigError, match=r"stages.video.batch_size: 7 does not split over \d+ .* x 2 micro-batch"
    ):
        check_batch(mesh, 7, 2, "stages.video.batch_size")


def test_a_sequence_must_split():
    mesh = AbstractMesh((1, 1, 4, 1), AXES)
    check_length(mesh, 160, "stages.video.data.seq_len")
    with pytest.raises(
        ConfigError,
        match=r"seq_len: 162 tokens do not split over mesh\.context = 4 devices; "
        r"the next .* is 164",
    ):
        check_length(mesh, 162, "stages.video.data.seq_len")


def test_a_mesh_is_described():
    """With two processes: see `equality.py`."""
    assert describe_mesh(make_mesh(schema.mesh())).startswith(
        f"{jax.device_count()} device(s) of 1 process(es)"
    )


def test_a_batch_keeps_its_values():
    batch = {
        "a": np.arange(6 * jax.device_count()).reshape(-1, 3),
        "b": np.zeros(2 * jax.device_count(), np.uint8),
    }
    placed = shard_batch(batch, make_mesh(schema.mesh()))
    assert placed["b"].dtype == np.uint8
    np.testing.assert_array_equal(placed["a"], batch["a"])
