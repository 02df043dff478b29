"""Processes that share one mesh: they run the same programs in the same order, or end together.

    exchange   every process gives a value, and has all of them        agree, from_first: on it
    together   within it, an error, a signal or a lost process ends all of them, in a line each

All of it goes through the coordinator. An exchange between devices would wait for a process that
has failed, and on CPUs gives up when one comes half a minute late.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from elva_jax.errors import ConfigError, StartError, first_line, printable
from elva_jax.parallel.distributed import exit_if_distributed
from elva_jax.utils import signals

WAIT_SECONDS = 600.0  # for the others outside of `together`, where nothing tells of their errors
LOOK_MS = 300  # between two looks at whether another process has failed
SEEN_SECONDS = 1.0  # for the main thread to see that another process has failed
LEAVE_SECONDS = 5.0  # that the first process serves the others after an error
LAST_SECONDS = 0.5  # for their last lines
PIECE = 2**20  # characters of a value that are sent together

T = TypeVar("T")


class Lockstep:
    """The processes of a mesh.

    Args:
      processes: their indices, this one among them; fewer than two: there is nothing to agree on.

    Attributes:
      alone: whether there is one process only.
      first: whether this is the one that keeps journals and writes results.
    """

    def __init__(self, processes: tuple[int, ...] = ()) -> None:
        self.alone = len(processes) < 2
        self._me = 0 if self.alone else jax.process_index()
        self.first = self.alone or self._me == processes[0]
        self._others = [index for index in processes if index != self._me]
        self._name = "elva/" + "-".join(map(str, processes))
        self._epoch = self._count = 0  # failures that all have left, and exchanges since
        self._within = False

    def exchange(self, value: Any) -> list[Any]:
        """The JSON-able value of every process, that of the first one first; all must call it.

        Raises:
          StartError: another process has failed, or does not come.
          KeyboardInterrupt: it has been interrupted.
        """
        if self.alone:
            return [value]
        key, self._count = self._key(str(self._count)), self._count + 1
        if self.first:
            found = [value, *(self._receive(f"{key}/{other}") for other in self._others)]
            self._send(f"{key}/all", found)
            if self._count > 1:  # which all of them have finished
                _client().key_value_delete(self._key(str(self._count - 2)))
            return found
        self._send(f"{key}/{self._me}", value)
        return list(self._receive(f"{key}/all"))

    def agree(self, what: str, value: Any) -> None:
        """Compares a JSON-able value of all processes, all of which must call this.

        Raises:
          ConfigError: naming `what`, where they differ.
        """
        found = self.exchange(value)
        if any(other != found[0] for other in found):
            raise ConfigError(
                f"{what}: the processes of the mesh differ; give each the same options and files,"
                " and let each ask the same in the same order"
            )

    def from_first(self, make: Callable[[], T]) -> T:
        """The JSON-able value that the first process makes, in every process."""
        if self.alone:
            return make()
        value: T = self.exchange(make() if self.first else None)[0]
        return value

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within it all processes end when one does, and none leaves before the others are done.

        Raises:
          StartError: another process has failed, with its error; or cannot be reached.
          KeyboardInterrupt: it has been interrupted.
        """
        if self.alone or self._within:
            yield
            return
        self._within, ended = True, threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), name="lockstep", daemon=True)
        watch.start()
        try:
            seconds = LEAVE_SECONDS + LAST_SECONDS if self.first else LAST_SECONDS
            with signals.telling(self._tell_signal, seconds):
                yield
                self.exchange("done")
        except BaseException as error:
            lost = self._lost(error)
            self._tell(lost or error)
            if lost:
                raise lost from error
            raise
        finally:
            ended.set()
            watch.join()
            self._within = False

    def _key(self, name: str) -> str:
        return f"{self._name}/{self._epoch}/{name}"

    def _send(self, key: str, value: Any) -> None:
        text = json.dumps(value)
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces):
            more = "." if number == len(pieces) - 1 else "+"
            _client().key_value_set(f"{key}/{number}", more + piece)

    def _receive(self, key: str) -> Any:
        text, more, number = "", "+", 0
        while more == "+":
            piece = self._wait(f"{key}/{number}")
            text, more, number = text + piece[1:], piece[0], number + 1
        return json.loads(text)

    def _wait(self, key: str) -> str:
        """The value of a key once it is there."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return str(_client().blocking_key_value_get(key, LOOK_MS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise _unreachable(error) from error
            if failure := self._failure():
                raise _error_of(failure)
            if not self._within and time.monotonic() > deadline:
                raise StartError(
                    "mesh: another process did not ask the same within"
                    f" {WAIT_SECONDS:.0f} s; check its own message"
                )

    def _failure(self) -> dict[str, Any] | None:
        """The report of the first process that failed, or None."""
        try:
            found: dict[str, Any] = json.loads(_client().key_value_try_get(self._key("failed")))
        except jax.errors.JaxRuntimeError:
            return None
        return found

    def _lost(self, error: BaseException) -> BaseException | None:
        """The error of another process, where the one of this process only follows from it."""
        if not isinstance(error, jax.errors.JaxRuntimeError):
            return None
        deadline = time.monotonic() + 2 * LOOK_MS / 1000  # its word may come after its end
        while time.monotonic() < deadline:
            if failure := self._failure():
                return _error_of(failure)
            time.sleep(LOOK_MS / 3000)
        words = ("Gloo", "NCCL", "Coordination", "heartbeat")
        return _unreachable(error) if any(word in str(error) for word in words) else None

    def _tell(self, error: BaseException) -> None:
        """Tells the others of an error, and waits until they know of it."""
        number = 0
        if isinstance(error, KeyboardInterrupt):
            number = getattr(error, "number", signal.SIGINT)
        self._set("failed", {"process": self._me, "text": first_line(error), "signal": number})
        self._leave()
        self._epoch, self._count = self._epoch + 1, 0

    def _leave(self) -> None:
        """Says that this process is about to end; the first one waits until all are."""
        self._set(f"left/{self._me}", "")
        deadline = time.monotonic() + LEAVE_SECONDS
        for other in self._others if self.first else ():
            left = max(deadline - time.monotonic(), 0.001)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                _client().blocking_key_value_get(self._key(f"left/{other}"), int(left * 1000))
        if self.first:  # JAX aborts processes whose coordinator ends before them
            time.sleep(LAST_SECONDS)

    def _tell_signal(self, number: int) -> None:
        """Tells the others that a signal ends this process, whatever it does."""
        self._set("failed", {"process": self._me, "text": "", "signal": number})
        self._leave()

    def _set(self, name: str, value: Any) -> None:
        """Sets a key, unless it has been set before or the coordinator has ended."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(self._key(name), json.dumps(value))

    def _watch(self, ended: threading.Event) -> None:
        """The thread: ends a process whose program waits for one that has failed."""
        while not ended.wait(LOOK_MS / 1000):
            failure = self._failure()
            if failure is None or failure["process"] == self._me:
                continue
            if ended.wait(SEEN_SECONDS):  # the main thread has seen it
                return
            if failure["signal"]:
                os.kill(os.getpid(), failure["signal"])
                return
            print(_error_of(failure), file=sys.stderr, flush=True)
            self._leave()
            exit_if_distributed(1)  # without a word it would be taken for killed


@functools.cache
def _of(processes: tuple[int, ...]) -> Lockstep:
    return Lockstep(processes)


ALONE = Lockstep()


def lockstep_of(mesh: Mesh | None) -> Lockstep:
    """The processes whose devices a mesh has, always the same object for the same processes."""
    if mesh is None or not mesh.is_multi_process:
        return ALONE
    return _of(tuple(sorted({device.process_index for device in mesh.devices.flat})))


def digest(*values: Any) -> int:
    """A checksum of trees of NumPy's arrays, strings and numbers."""
    leaves = jax.tree.leaves(values)
    found = 0
    for leaf in leaves:
        array = isinstance(leaf, np.ndarray)
        text = f"{leaf.shape} {leaf.dtype}" if array else repr(leaf)
        found = zlib.crc32(text.encode("utf-8", "surrogatepass"), found)
        if array:
            found = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, found)
    return found


def _error_of(failure: dict[str, Any]) -> BaseException:
    if failure["signal"]:
        return signals.Interrupted(failure["signal"])
    return StartError(printable(f"process {failure['process']} has ended: {failure['text']}"))


def _unreachable(error: BaseException) -> StartError:
    return StartError(
        "another process has ended, or cannot be reached: check its own message"
        f" ({first_line(error)})"
    )


def _client() -> Any:
    import orbax.checkpoint as ocp  # noqa: PLC0415 (takes a second, which one process need not)

    return ocp.multihost.get_jax_distributed_client()
