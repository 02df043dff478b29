"""Barriers and comparisons between the processes of one JAX runtime."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from elva_jax.errors import ConfigError


def barrier(name: str, timeout: int = 600) -> None:
    """Waits until all processes have reached this point, for at most `timeout` seconds.

    It goes through the coordinator instead of the devices, because a collective on CPUs gives up
    when one process comes half a minute late.
    """
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=timeout * 1000)


def all_gather_json(value: Any) -> list[Any]:
    """The JSON-able value of every process, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded).reshape(jax.process_count(), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def assert_equal_across_processes(what: str, value: Any) -> None:
    """Compares a JSON-able value of all processes, all of which must call this.

    Raises:
      ConfigError: naming `what` and the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    barrier(what)
    digests = all_gather_json(
        hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    )
    others = [str(index) for index, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise ConfigError(
            f"{what}: process 0 and process(es) {', '.join(others)} differ; give every host the"
            " same files"
        )
