"""Levels of ZeRO: what the compiled step gathers and keeps."""

from jax.sharding import NamedSharding, PartitionSpec

from elva_jax.config import schema
from elva_jax.parallel.mesh import make_mesh
from elva_jax.parallel.zero import _without_fsdp


def test_levels_differ_in_when_weights_are_gathered(on_eight_devices):
    three, two = on_eight_devices("zero_levels.py")
    assert (three["gathers_per_layer"], three["gathers_per_step"]) == (2, 0)  # forward and backward
    assert (two["gathers_per_layer"], two["gathers_per_step"]) == (0, 1)
    for report in (three, two):
        assert report["sums_of_shards"], report
        assert report["result"] == [None, "fsdp", None], report


def test_without_fsdp_keeps_the_other_axes():
    mesh = make_mesh(schema.mesh())
    for spec, whole in (
        (("fsdp", "tensor"), (None, "tensor")),
        ((("data", "fsdp"), None), ("data", None)),
        ((None,), (None,)),
    ):
        assert _without_fsdp(NamedSharding(mesh, PartitionSpec(*spec))).spec == PartitionSpec(
            *whole
        )
