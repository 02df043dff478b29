"""The device mesh, and batches on it.

Devices form a grid of four axes, in the order of their processes. Example: two processes (hosts) of
four devices each, data = 2, fsdp = 2, tensor = 2:

                 fsdp 0          fsdp 1
    data 0    [ d0    d1 ]    [ d2    d3 ]     process 0
    data 1    [ d4    d5 ]    [ d6    d7 ]     process 1
             tensor 0   1    tensor 0   1

The inner axes stay within a process and `data` is the first to cross it, so what exchanges most is
nearest. Rows of a batch are split over data x fsdp; devices that differ only in context and tensor
hold the same rows.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elva_jax.config.mesh_axes import AXES
from elva_jax.config.schema import MeshConfig
from elva_jax.errors import ConfigError

BATCH_AXES = ("data", "fsdp")  # the axes that split the batch


def make_mesh(config: MeshConfig, *, own_rows: bool = True) -> Mesh:
    """Builds the mesh of `config.mesh` over all devices of all processes.

    Args:
      config: its axes, of which one may be -1: it takes the devices that the others leave.
      own_rows: whether each process reads rows of its own, as in training, or all read the same.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or rows of the batch would be
        split between processes.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    devices = jax.device_count()
    wanted = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(
            f"mesh: {wanted}: every axis must be at least 1, and at most one of them -1"
            " (all remaining devices)"
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if rest and devices % known == 0:
        sizes[rest[0]] = devices // known
    elif known != devices:
        raise ConfigError(
            f"mesh: {wanted} does not divide the {devices} available device(s); change mesh.* so"
            f" that the product is {devices}"
        )
    local, inner = jax.local_device_count(), sizes["context"] * sizes["tensor"]
    if own_rows and jax.process_count() > 1 and local % inner:
        raise ConfigError(
            f"mesh: context x tensor = {inner} devices hold the same rows, but a process has"
            f" {local}, and each process reads rows of its own; lower them, or start one process"
            " for all devices of a host"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def with_all_axes(mesh: Mesh) -> Mesh:
    """The same devices on a mesh of `AXES`; those that it lacks have one device.

    Raises:
      ConfigError: an axis of another name.
    """
    if unknown := set(mesh.axis_names) - set(AXES):
        raise ConfigError(f"mesh: no such axis '{unknown.pop()}'; use {', '.join(AXES)}")
    order = [mesh.axis_names.index(axis) for axis in AXES if axis in mesh.axis_names]
    sizes = [mesh.shape.get(axis, 1) for axis in AXES]
    return Mesh(mesh.devices.transpose(order).reshape(sizes), AXES)


def describe_mesh(mesh: Mesh) -> str:
    """One line about a mesh: its axes larger than 1, and which of them cross processes."""
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    parts = []
    for k, (axis, size) in enumerate(mesh.shape.items()):
        crosses = " (across processes)" if (processes != processes.take([0], axis=k)).any() else ""
        parts += [f"{axis} {size}{crosses}"] if size > 1 else []
    axes = f": {', '.join(parts)}" if parts else ""
    return f"{mesh.size} device(s) of {jax.process_count()} process(es){axes}"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data` and `fsdp`, the others not split."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Within it, programs on NumPy arrays run on the host's processor, whatever the mesh in use.

    Without a CPU backend (JAX_PLATFORMS=cuda) it does nothing.
    """
    try:
        processor = jax.local_devices(backend="cpu")[-1]
    except RuntimeError:
        return contextlib.nullcontext()
    return jax.set_mesh(Mesh(np.array([processor]), ("host",)))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, key: str) -> None:
    """Raises ConfigError, naming `key`, if the micro-batches of a global batch do not split evenly.

    They must split over the batch axes of the mesh, and the batch over the processes.
    """
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if batch_size % parts or batch_size % jax.process_count():
        raise ConfigError(
            f"{key}: {batch_size} does not split over {parts // accumulate} batch-parallel"
            f" device(s) x {accumulate} micro-batch(es) and {jax.process_count()} process(es)"
        )


def check_length(mesh: Mesh, length: int, key: str) -> None:
    """Raises ConfigError, naming `key`, if the axis `context` does not divide a sequence length."""
    parts = mesh.shape["context"]
    if length % parts:
        near = -(-length // parts) * parts
        raise ConfigError(
            f"{key}: {length} tokens do not split over mesh.context = {parts} devices; the next"
            f" length that does is {near}"
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Turns each process's rows of a batch into global arrays.

    Args:
      batch: a pytree of NumPy arrays [b, ...], the same shapes in every process.
      mesh: the device mesh.

    Returns:
      the same pytree of arrays [b * processes, ...], with `batch_sharding`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch
    )
