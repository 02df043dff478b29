"""The rules table, and losses and gradients on eight fake devices against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from elva_jax.config import base
from elva_jax.errors import ConfigError
from elva_jax.parallel.mesh import make_mesh
from elva_jax.parallel.sharding import check_collisions, parameter_shardings

MESHES = [{"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 1, "tensor": 4}]


@pytest.mark.parametrize(
    ("names", "activation", "axis"),
    [(("heads", "mlp"), False, "tensor"), (("embed", "mlp", None), False, None), (("batch", "seq", "embed"), True, None)],
)
def test_collisions_are_refused(names, activation, axis):
    if axis is None:
        check_collisions(names, "some/kernel", activation)
        return
    with pytest.raises(ConfigError, match=rf"some/kernel: logical axes 'heads' and 'mlp' .* mesh axis '{axis}'"):
        check_collisions(names, "some/kernel", activation)


def test_unknown_names_are_refused():
    boxed = {"w": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 4), jnp.float32), ("embed", "sideways"))}
    with pytest.raises(ConfigError, match="w: unknown logical axis 'sideways'"):
        parameter_shardings(boxed, make_mesh(base.mesh()))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["video", "sft"])
def test_eight_devices_agree_with_one(stage):
    """video has every loss term (negatives gathered over all devices), sft merges."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, str(script), stage, json.dumps(MESHES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.rpartition("RESULT ")[2])
    assert report["norm"] > 1e-3
    for sizes, result in zip(MESHES, report["meshes"], strict=True):
        assert result["loss"] == pytest.approx(report["loss"], rel=1e-5), sizes
        assert result["worst"] < 1e-5, sizes
        # A decoder kernel is [layers, embed, heads]: split over fsdp x tensor; q and its Adam moments lie alike.
        assert result["split"]["elva/decoder/layers/q_proj/kernel"] == sizes["fsdp"] * sizes["tensor"]
        moments = [spec for path, spec in result["moments"].items() if path.endswith("mu/elva/decoder/layers/q_proj/kernel")]
        assert moments == ["PartitionSpec(None, 'fsdp', 'tensor')"]
        # Two key-value heads over four devices stay whole where their flat width does not divide.
        assert result["split"]["elva/decoder/norm/scale"] == sizes["fsdp"]
