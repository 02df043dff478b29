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
from elva_jax.parallel.mesh import BATCH_AXES, make_mesh
from elva_jax.parallel.sharding import RULES, check_collisions, parameter_shardings

COMPILE_FAST = "--xla_backend_optimization_level=0"
MESHES = {
    "video": [{"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2}],
    "sft": [{"data": 2, "fsdp": 1, "tensor": 4}],
}


def test_collisions_are_refused():
    check_collisions(("layers", "embed", "mlp", None), "some/kernel")
    with pytest.raises(ConfigError, match=r"some/kernel: logical axes 'heads' and 'mlp' .* mesh axis 'tensor'"):
        check_collisions(("heads", "mlp"), "some/kernel")


def test_no_activation_can_collide_with_its_batch():
    for name, (_, axes) in RULES.items():
        assert name == "batch" or axes not in BATCH_AXES


def test_unknown_names_are_refused():
    boxed = {"w": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 4), jnp.float32), ("embed", "sideways"))}
    with pytest.raises(ConfigError, match="w: unknown logical axis 'sideways'"):
        parameter_shardings(boxed, make_mesh(base.mesh()))


@pytest.mark.slow
@pytest.mark.parametrize("stage", MESHES)
def test_eight_devices_agree_with_one(stage):
    """video has every loss term (negatives gathered over all devices), sft merges."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"}
    script = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, str(script), stage, json.dumps(MESHES[stage])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.rpartition("RESULT ")[2])
    assert report["norm"] > 1e-3
    for sizes, result in zip(MESHES[stage], report["meshes"], strict=True):
        assert result["loss"] == pytest.approx(report["loss"], rel=1e-5), sizes
        assert result["worst"] < 1e-5, sizes
        # Decoder kernels are [layers, embed, heads]: split over fsdp x tensor, and Adam's moments lie as they do.
        layers = "elva/decoder/layers"
        assert result["split"][f"{layers}/q_proj/kernel"] == sizes["fsdp"] * sizes["tensor"]
        moments = [spec for path, spec in result["moments"].items() if path.endswith(f"mu/{layers}/q_proj/kernel")]
        assert moments == [[None, "fsdp", "tensor"]]
        # Two key-value heads do not split over four devices, although the flat width of their kernel would.
        assert result["split"][f"{layers}/k_proj/kernel"] == sizes["fsdp"] * (sizes["tensor"] if sizes["tensor"] <= 2 else 1)
