"""Which process of how many this is, from flags, Slurm, Open MPI or Kubernetes, and their common start.

JAX finds some of this itself, but it takes one GPU a process wherever Slurm or Open MPI numbers processes on a host, asks Kubernetes'
API with rights that pods rarely have, and aborts with a stack trace where a process stays away. So the reading is done here.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import elva_jax
from elva_jax.errors import ConfigError, StartError
from elva_jax.parallel.handshake import meet

PORTS = (
    61_440,
    4096,
)  # first port and number of ports that a job's number chooses from, as JAX does


class Place(NamedTuple):
    """Where one process of several stands."""

    source: str  # who said so
    coordinator: str  # HOST:PORT of process 0
    count: int  # processes
    index: int  # this one
    local_devices: tuple[int, ...] | None = (
        None  # indices of the devices that are this process's; None: all that it sees
    )


def find(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_devices: tuple[int, ...] | None = None,
) -> Place | None:
    """This process's place, from flags and the environment; None where it is alone.

    Flags come first, then ELVA_COORDINATOR, ELVA_NUM_PROCESSES and ELVA_PROCESS_ID, then the launcher: srun, mpirun, or a Job of Kubernetes
    with completionMode Indexed, whose pods know their index alone.

    Raises:
      ConfigError: values that are missing, impossible, or contradict the launcher's.
    """
    launcher, found = _launcher(environ)
    if found.get("num_processes") == 1:  # a plain shell within a job
        launcher, found = "", {}
    given = {
        "coordinator": coordinator or environ.get("ELVA_COORDINATOR"),
        "num_processes": num_processes
        if num_processes is not None
        else _whole(environ, "ELVA_NUM_PROCESSES"),
        "process_id": process_id if process_id is not None else _whole(environ, "ELVA_PROCESS_ID"),
    }
    for name in ("num_processes", "process_id"):
        said, real = given[name], found.get(name)
        if None not in (said, real) and said != real:
            raise ConfigError(
                f"{_flag(name)}: {said}, but {launcher} says {real}; leave it out, or alone: --distributed off"
            )
    place = found | {name: value for name, value in given.items() if value is not None}
    if not place or place.get("num_processes") == 1:
        return None
    missing = [_flag(name) for name in given if name not in place]
    if missing:
        who = launcher or "one of several processes"
        raise ConfigError(
            f"{', '.join(missing)}: not given, and {who} does not say; a process alone: --distributed off"
        )
    address, count, index = place["coordinator"], place["num_processes"], place["process_id"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{_flag('coordinator')}: '{address}' is not the HOST:PORT of process 0")
    if not 0 <= index < count:
        raise ConfigError(
            f"{_flag('process_id')}: {index} is not within 0 … {count - 1}, the numbers of {count} processes"
        )
    devices = local_devices if local_devices is not None else _own_devices(environ, found)
    return Place(launcher or "flags", address, count, index, devices)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')} (or ELVA_{name.upper()})"


def _launcher(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The launcher's name, and what it says: process_id, num_processes, coordinator, local (index on this host) and on_host (how many)."""
    if "SLURM_JOB_ID" in environ and "SLURM_PROCID" in environ:
        return "Slurm", _slurm(environ)
    if "OMPI_COMM_WORLD_RANK" in environ:
        return "Open MPI", _open_mpi(environ)
    if "JOB_COMPLETION_INDEX" in environ and "KUBERNETES_SERVICE_HOST" in environ:
        return "Kubernetes", {"process_id": _whole(environ, "JOB_COMPLETION_INDEX")}
    return "", {}


def _slurm(environ: Mapping[str, str]) -> dict[str, Any]:
    count = _whole(environ, "SLURM_STEP_NUM_TASKS") or _whole(environ, "SLURM_NTASKS") or 1
    if "SLURM_STEP_NODELIST" not in environ:  # the batch script itself, or the shell of salloc
        if count > 1:
            raise ConfigError(
                f"Slurm: {count} tasks, but srun did not start this process: put srun in front; alone: --distributed off"
            )
        return {}
    nodes = environ["SLURM_STEP_NODELIST"]
    per_node = _expanded(
        environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    )
    node = _whole(environ, "SLURM_NODEID") or 0
    return {
        "process_id": _whole(environ, "SLURM_PROCID"),
        "num_processes": count,
        "coordinator": f"{first_host(nodes)}:{_port(_whole(environ, 'SLURM_JOB_ID'))}",
        "local": _whole(environ, "SLURM_LOCALID"),
        "on_host": per_node[node] if node < len(per_node) else None,
    }


def _open_mpi(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "process_id": _whole(environ, "OMPI_COMM_WORLD_RANK"),
        "num_processes": _whole(environ, "OMPI_COMM_WORLD_SIZE"),
        "local": _whole(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        "on_host": _whole(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    }
    # Only Open MPI 4 says where mpirun runs, which by default is where process 0 does.
    uri = re.match(
        r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://(\[[^,\]]+))",
        environ.get("OMPI_MCA_orte_hnp_uri", ""),
    )
    if uri:
        host = uri[2] or uri[3] + "]"
        found["coordinator"] = f"{host}:{_port(int(uri[1]) // 4096)}"
    return found


def first_host(nodes: str) -> str:
    """The first host of Slurm's compressed list, such as `node[001-004,007],other`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    if not match:
        raise ConfigError(
            f"SLURM_STEP_NODELIST: '{nodes}' names no host; give --coordinator HOST:PORT"
        )
    return "".join(part or "" for part in match.groups())


def _expanded(counts: str) -> list[int]:
    """Slurm's tasks a node: `8(x2),4` is 8, 8, 4."""
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, times in pairs for _ in range(int(times or 1))]


def _own_devices(environ: Mapping[str, str], found: Mapping[str, Any]) -> tuple[int, ...] | None:
    """A process's share of the GPUs that it sees, where several processes share a host; None: all of them."""
    local, on_host, visible = (
        found.get("local"),
        found.get("on_host"),
        environ.get("CUDA_VISIBLE_DEVICES"),
    )
    if local is None or on_host in (None, 1) or visible in (None, ""):
        return None
    seen = len(visible.split(","))
    if seen == 1:  # the launcher has already given each process its own
        return None
    if seen % on_host:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES: {seen} GPUs do not divide among {on_host} processes of this host; give --local-devices"
        )
    share = seen // on_host
    return tuple(range(local * share, (local + 1) * share))


def _port(job: int | None) -> int:
    first, number = PORTS
    return first + (job or 0) % number


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    """A whole number of the environment; None where it is not set.

    Raises:
      ConfigError: it is something else.
    """
    text = environ.get(name)
    if text in (None, ""):
        return None
    if not text.isdigit():
        raise ConfigError(f"{name}: '{text}' is not a whole number")
    return int(text)


def start(
    place: Place | None, facts: Mapping[str, Any], timeout: int = 300, heartbeat: int = 100
) -> None:
    """Joins all processes into one JAX runtime; must come before anything asks JAX for devices. Nothing to do where `place` is None.

    Args:
      place: from `find`.
      facts: what must be the same in every process, by name: JSON-able values, or whole trees of them.
      timeout: seconds that the processes wait for one another.
      heartbeat: seconds of silence after which a process counts as dead, and the others end.

    Raises:
      ConfigError: processes that differ in a fact, in their number, or in how many devices they see.
      StartError: a process that did not come in time.
    """
    if place is None:
        return
    meet(place.coordinator, place.count, place.index, facts, timeout)
    jax.config.update("jax_enable_preemption_service", False)  # training listens to SIGTERM itself
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
    )
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {index} {count}" for index, count in sorted(counts.items()))
        raise ConfigError(
            f"processes see different numbers of devices: {listed}; give each the same"
        )


@contextlib.contextmanager
def watching_others() -> Iterator[None]:
    """Turns what JAX raises when another process has gone into one line.

    Raises:
      StartError: an exchange with other processes failed.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if jax.process_count() == 1 or not any(
            word in text for word in ("Gloo", "NCCL", "Coordination", "heartbeat")
        ):
            raise
        raise StartError(
            f"another process has ended, or cannot be reached: see its own message ({text.splitlines()[0][:160]})"
        ) from error


def leave(status: int) -> None:
    """Ends this process at once where it is one of several: JAX would wait for the others, which wait for this one."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(name: str, timeout: int = 600) -> None:
    """Waits until all processes are here, without their devices: CPUs give an exchange up when one comes half a minute late."""
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=timeout * 1000)


def agree(what: str, value: Any) -> None:
    """Refuses to go on where a JSON-able value is not the same in all processes, which all have to call this.

    Raises:
      ConfigError: naming `what` and the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    wait(what)
    digest = np.frombuffer(
        hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest(), np.uint8
    )
    rows = multihost_utils.process_allgather(digest).reshape(jax.process_count(), -1)
    other = [str(index) for index in np.flatnonzero((rows != rows[0]).any(axis=1))]
    if other:
        raise ConfigError(
            f"{what}: process(es) {', '.join(other)} have another than process 0; give every host the same files"
        )


def facts(config: ConfigDict) -> dict[str, Any]:
    """What processes of one run have in common, for `start`: the source of this package, versions, and every key of the configuration."""
    root = Path(elva_jax.__file__).parent
    source = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    versions = {
        "elva_jax": elva_jax.__version__,
        "jax": jax.__version__,
        "source of elva_jax": source.hexdigest()[:12],
    }
    return {**versions, "config": json.loads(config.to_json())}
