"""The device mesh, and getting batches onto it."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from elva_jax.errors import ConfigError

AXES = (
    "data",
    "fsdp",
    "context",
    "tensor",
)  # the outermost first: what exchanges most lies on the nearest devices
BATCH_AXES = ("data", "fsdp")  # mesh axes that split the batch


def make_mesh(config: ConfigDict) -> Mesh:
    """Builds the mesh of `config.mesh` over all devices of all processes; one axis may be -1, which takes what is left.

    Devices are in the order of their processes, so that the inner axes stay within a process (a host) and `data` is the first to cross it:
    data = hosts and fsdp = devices of a host replicates across hosts and shards within.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or rows would be split between processes.
    """
    sizes = {axis: config[axis] for axis in AXES}
    devices = jax.device_count()
    wanted = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(
            f"mesh: {wanted}: every axis is at least 1, and one of them may be -1 (all remaining devices)"
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if rest and devices % known == 0:
        sizes[rest[0]] = devices // known
    elif known != devices:
        raise ConfigError(
            f"mesh: {wanted} does not divide the {devices} device(s) there are; change mesh.* so that the product is {devices}"
        )
    here, inner = jax.local_device_count(), sizes["context"] * sizes["tensor"]
    if jax.process_count() > 1 and here % inner:
        raise ConfigError(
            f"mesh: context x tensor = {inner} devices hold the same rows, but a process has {here}, and each reads rows of its own;"
            " lower them, or start one process for all devices of a host"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe(mesh: Mesh) -> str:
    """One line about a mesh: its axes beyond 1, and which of them leave a process."""
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    parts = []
    for k, (axis, size) in enumerate(mesh.shape.items()):
        crosses = " (across processes)" if (processes != processes.take([0], axis=k)).any() else ""
        parts += [f"{axis} {size}{crosses}"] if size > 1 else []
    return f"{mesh.size} device(s) of {jax.process_count()} process(es)" + (
        f": {', '.join(parts)}" if parts else ""
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, key: str) -> None:
    """Refuses a global batch whose micro-batches the mesh or the processes cannot split evenly.

    Raises:
      ConfigError: naming `key`.
    """
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if batch_size % parts or batch_size % jax.process_count():
        raise ConfigError(
            f"{key}: {batch_size} does not split over {parts // accumulate} batch-parallel device(s)"
            f" x {accumulate} micro-batch(es) and {jax.process_count()} process(es)"
        )


def check_length(mesh: Mesh, length: int, key: str) -> None:
    """Refuses a sequence length that the axis `context` cannot split evenly.

    Raises:
      ConfigError: naming `key`.
    """
    parts = mesh.shape["context"]
    if length % parts:
        near = -(-length // parts) * parts
        raise ConfigError(
            f"{key}: {length} tokens do not split over mesh.context = {parts} devices; the next length that does is {near}"
        )


def check_stage(mesh: Mesh, stage: ConfigDict, at: str) -> None:
    """Refuses a stage whose batch, or whose sequences behind any merge, the mesh cannot split evenly.

    Args:
      mesh: the device mesh.
      stage: its configuration.
      at: what its keys begin with, such as `stages.video.`.

    Raises:
      ConfigError: naming the key.
    """
    check_batch(mesh, stage.batch_size, stage.optimizer.accumulate, at + "batch_size")
    if stage.kind == "elva":
        check_length(mesh, stage.data.seq_len, at + "data.seq_len")
        for bucket in stage.merge_buckets:
            check_length(mesh, bucket, at + "merge_buckets")


def shard_batch(batch, mesh: Mesh):
    """Turns each process's share of a batch (any pytree of NumPy arrays [b, ...]) into global arrays [b * processes, ...]."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch
    )
