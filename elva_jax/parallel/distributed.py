"""Several processes as one JAX runtime: their start, barriers, comparisons, and their end.

    detect_process                      which process this is
    initialize
      handshake.rendezvous              all processes are there, with equal code and configuration
      jax.distributed.initialize        JAX connects them; each now sees the devices of all

Before `elva_jax.train` in a script of your own:

    process = distributed.detect_process(os.environ)
    distributed.initialize(process, distributed.run_fingerprint(config))

Without a launcher there is one process, and nothing to do:

    >>> import elva_jax
    >>> elva_jax.distributed.detect_process({}) is None
    True

JAX alone would abort with a stack trace where a process stays away, and would let processes with
different configurations start together.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_to_dict
from elva_jax.errors import ConfigError, StartError
from elva_jax.parallel.collectives import all_gather_json, assert_equal_across_processes, barrier
from elva_jax.parallel.handshake import rendezvous
from elva_jax.parallel.launchers import ProcessSpec, detect_process
from elva_jax.parallel.lifeline import Lifeline
from elva_jax.version import __version__

__all__ = [
    "ProcessSpec",
    "all_gather_json",
    "assert_equal_across_processes",
    "await_lost",
    "barrier",
    "code_fingerprint",
    "detect_process",
    "exit_if_distributed",
    "explain_lost_processes",
    "initialize",
    "leave",
    "meet",
    "run_fingerprint",
]


LOST_SECONDS = 1.0  # in which the end of a connection is seen
_lifelines: list[Lifeline] = []  # one, once the processes have met for one runtime


def initialize(
    process: ProcessSpec | None,
    fingerprint: Mapping[str, Any],
    *,
    start_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins all processes into one JAX runtime, before anything asks JAX for devices.

    Args:
      process: from `detect_process`; None for a single process: nothing is done.
      fingerprint: what must be equal in all processes, as nested JSON-able values by name.
      start_timeout: seconds that the processes wait for one another.
      heartbeat_timeout: seconds of silence after which a process counts as dead, and the others
        end. They end at once where the network says that it is gone (`lifeline`).

    Raises:
      ConfigError: processes differ in the fingerprint, their number or their number of devices.
      StartError: a process did not come in time.
    """
    if process is None:
        return
    connections = rendezvous(
        process.coordinator, process.num_processes, process.process_id, fingerprint, start_timeout
    )
    _lifelines.append(Lifeline(process.process_id, connections, heartbeat_timeout))
    _bypass_proxy(process.coordinator)
    # Training handles SIGTERM itself.
    jax.config.update("jax_enable_preemption_service", val=False)
    jax.distributed.initialize(
        process.coordinator,
        process.num_processes,
        process.process_id,
        process.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=start_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
        shutdown_timeout_seconds=heartbeat_timeout,
    )
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {index} {count}" for index, count in sorted(counts.items()))
        raise ConfigError(
            f"processes see different numbers of devices: {listed}; give each the same number"
        )


def meet(
    process: ProcessSpec | None, fingerprint: Mapping[str, Any], *, start_timeout: int = 300
) -> tuple[int, int]:
    """Meets the other processes of a command that computes apart in each, and returns.

    Unlike after `initialize`, each process has a JAX runtime of its own, with its share of the
    host's GPUs, and outlives the others. It must come before anything asks JAX for devices.

    Args:
      process: from `detect_process`; None for a single process.
      fingerprint: what must be equal in all processes, as nested JSON-able values by name.
      start_timeout: seconds that the processes wait for one another.

    Returns:
      The index of this process and the number of processes.

    Raises:
      ConfigError: processes differ in the fingerprint or their number.
      StartError: a process did not come in time.
    """
    if process is None:
        return 0, 1
    connections = rendezvous(
        process.coordinator, process.num_processes, process.process_id, fingerprint, start_timeout
    )
    for connection in connections.values():
        connection.close()
    if process.local_devices is not None:
        visible = ",".join(map(str, process.local_devices))
        jax.config.update("jax_cuda_visible_devices", visible)
        jax.config.update("jax_rocm_visible_devices", visible)
    return process.process_id, process.num_processes


def _bypass_proxy(coordinator: str) -> None:
    """Makes gRPC, by which JAX connects, reach the coordinator itself instead of a proxy.

    Only gRPC reads this variable; it then ignores `no_proxy`.
    """
    name = "no_grpc_proxy"
    if not any(os.environ.get(proxy) for proxy in ("grpc_proxy", "https_proxy", "http_proxy")):
        return
    # JAX warns that start-up may hang, which is no longer true.
    jax_log = logging.getLogger("jax._src.distributed")
    jax_log.addFilter(lambda record: "proxy variable" not in record.getMessage())
    excluded = os.environ.get(name) or os.environ.get("no_proxy") or ""
    host = coordinator.rpartition(":")[0].strip("[]")
    os.environ[name] = ",".join(filter(None, (excluded, host)))


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turns what JAX raises when another process has ended into one line.

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
            "another process has ended, or cannot be reached: check its own message"
            f" ({text.splitlines()[0][:160]})"
        ) from error


def leave() -> None:
    """Tells the others of one runtime that this process ends as it should, if there are any."""
    for lifeline in _lifelines:
        lifeline.end("done")


def await_lost() -> None:
    """Lets a lost process be named, which ends this one, before an error that follows from it is.

    Errors of many libraries may be the first sign of it here, and say nothing of processes.
    """
    if _lifelines:
        time.sleep(LOST_SECONDS)


def exit_if_distributed(status: int) -> None:
    """Exits at once, after an error, if this is one of several processes.

    JAX's shutdown would wait for the other processes, and these wait for this one.
    """
    if _lifelines or jax.distributed.is_initialized():
        for lifeline in _lifelines:
            lifeline.end("failed")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_fingerprint(config: ConfigDict | Config) -> dict[str, Any]:
    """Source code, versions and configuration, which all processes of a run must share."""
    return {**code_fingerprint(), "config": config_to_dict(config)}


def code_fingerprint() -> dict[str, Any]:
    """Source code and versions, which all processes must share."""
    root = Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "elva_jax": __version__,
        "jax": jax.__version__,
        "source of elva_jax": source.hexdigest()[:12],
    }
