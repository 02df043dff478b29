"""Signals that ask a run to stop, and decisions that all processes take at the same step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elva_jax.parallel.collectives import barrier

INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it
PREEMPTED = os.EX_TEMPFAIL  # exit status after SIGTERM, 75: start the same command again


class StopSignal:
    """Turns SIGINT and SIGTERM into a request to stop after the current step.

    It does so within the block and after `defer`, which a stage calls after its first step. Before,
    while weights are read and programs compiled, there is nothing to save.

    A second Ctrl-C acts at once. A second SIGTERM does not: schedulers send it to a job and to each
    of its processes.

    Attributes:
      code: the exit status that was asked for, 0 before.
    """

    def __init__(self) -> None:
        self.code = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        return self

    def defer(self) -> None:
        """From now on a signal is a request; nothing changes if it is called again."""
        if self._old:
            return
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        self.act_at_once()

    def act_at_once(self) -> None:
        """From now on signals do what they did before the first `defer`."""
        for number in list(self._old):
            self._restore(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.code == INTERRUPTED and number == signal.SIGINT:  # the second one
            self._restore(number)
            signal.raise_signal(number)
            return
        self.code = max(self.code, INTERRUPTED if number == signal.SIGINT else PREEMPTED)
        if number == signal.SIGINT:
            text = "Stopping after this step. Press Ctrl-C again to quit now without saving."
            os.write(2, f"\n{text}\n".encode())  # unlike print, safe within a signal handler

    def _restore(self, number: int) -> None:
        old = self._old.pop(number)
        # None: a handler of JAX's preemption service, which Python cannot put back.
        signal.signal(number, signal.SIG_DFL if old is None else old)


class Consensus:
    """The maximum over all processes of small numbers, so that all stop and save at the same step.

    Args:
      mesh: of all processes.
      name: unique within a run.
    """

    def __init__(self, mesh: Mesh, name: str):
        self._name, self._count = name, 0
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._maximum = jax.jit(
            lambda x: jnp.max(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._sent: jax.Array | None = None

    def now(self, values: Sequence[int]) -> list[int]:
        """The maximum of each value; waits for the slowest process."""
        if jax.process_count() == 1:
            return list(values)
        self._count += 1
        barrier(f"{self._name}: {self._count}")
        return np.asarray(self._send(values)).tolist()

    def previous(self, values: Sequence[int]) -> list[int]:
        """The maximum of each value of the previous call, without waiting; 0 the first time.

        A process that is alone gets the values of this call.
        """
        if jax.process_count() == 1:
            return list(values)
        before, self._sent = self._sent, self._send(values)
        return [0] * len(values) if before is None else np.asarray(before).tolist()

    def _send(self, values: Sequence[int]) -> jax.Array:
        rows = np.tile(np.asarray(values, np.int32), (jax.local_device_count(), 1))
        return self._maximum(jax.make_array_from_process_local_data(self._rows, rows))
