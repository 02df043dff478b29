"""Levels of ZeRO: what the compiled step gathers and keeps, with eight fake devices in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.config import base
from elva_jax.parallel.mesh import make_mesh
from elva_jax.parallel.zero import _whole


def test_levels_differ_in_when_weights_are_gathered():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ['XLA_FLAGS']}"}
    script = Path(__file__).with_name("zero_levels.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    three, two = (json.loads(line) for line in done.stdout.splitlines())
    assert (three["gathers_a_layer"], three["gathers_a_step"]) == (2, 0)  # forward and backward
    assert (two["gathers_a_layer"], two["gathers_a_step"]) == (0, 1)
    for report in (three, two):
        assert report["sums_of_shards"], report
        assert report["result"] == [None, "fsdp", None], report


def test_whole_keeps_the_other_axes():
    mesh = make_mesh(base.mesh())
    for spec, whole in ((("fsdp", "tensor"), (None, "tensor")), ((("data", "fsdp"), None), ("data", None)), ((None,), (None,))):
        assert _whole(NamedSharding(mesh, PartitionSpec(*spec))).spec == PartitionSpec(*whole)
