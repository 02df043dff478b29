"""Open connections between process 0 and each other one, which tell at once that one is gone.

    {"process": I, "how": "done"}      process I has ended as it should: nothing to do
                          "failed"     with an error, which its own last line says
    end of the connection, "lost"      without a word: killed, out of memory, or its host is gone

Each process sends its own end to those that it is connected with, and process 0 tells all others
of one that is lost. JAX alone would wait for the heartbeat timeout, and then abort with a native
trace.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Literal

from elva_jax.utils import signals

OWN_SECONDS = 5.0  # after the error of another process: for what this one has to say of it
LEAVE_SECONDS = 2.0  # that process 0 waits for the others, as JAX aborts those that it leaves
MESSAGE = 1 << 12  # most bytes of a message
HOW = {
    "failed": "with an error: its own message says why",
    "lost": "without a word: it was killed, ran out of memory, or its host is gone; see its log."
    " All end; what they have saved stays",
}

How = Literal["done", "failed", "lost"]


class Lifeline:
    """The connections of this process, watched by a thread until it ends.

    Args:
      me: the index of this process.
      connections: by the index of the other process.
      silence: seconds without a sign of life of another host after which its process is lost.
    """

    def __init__(self, me: int, connections: Mapping[int, socket.socket], silence: int) -> None:
        self._me, self._connections = me, dict(connections)
        self._said = threading.Lock()  # taken by what says first how this process ends
        for connection in connections.values():
            _keep_alive(connection, silence)
        # Another process's forced end by a signal is like an error: this one has to end, too.
        self._by_signal = contextlib.ExitStack()
        self._by_signal.enter_context(signals.telling(lambda _: self.end("failed"), 0.1))
        atexit.register(self.end, "done")
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def end(self, how: How) -> None:
        """Tells the others how this process ends, which is about to; the first call counts.

        Process 0 stays until they have ended after an error.
        """
        if not self._said.acquire(blocking=False):
            return
        self._tell(self._me, how)
        if how == "failed":
            self._await_others()

    def _tell(self, process: int, how: How) -> None:
        text = json.dumps({"process": process, "how": how}).encode() + b"\n"
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # the other process has ended
                connection.sendall(text)

    def _await_others(self) -> None:
        if self._me:
            return
        deadline = time.monotonic() + LEAVE_SECONDS
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                while (left := deadline - time.monotonic()) > 0:
                    connection.settimeout(left)
                    if not connection.recv(MESSAGE):
                        break

    def _watch(self) -> None:
        """The thread."""
        with selectors.DefaultSelector() as selector:
            for index, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    process, how = _receive(self._connections[key.data], key.data)
                    selector.unregister(key.fileobj)
                    if how != "done":
                        self._follow(process, how)

    def _follow(self, process: int, how: How) -> None:
        """Ends this process, because another one has."""
        if how == "failed":
            # Process 0 waits for the others, but not for long.
            time.sleep(OWN_SECONDS if process else LEAVE_SECONDS / 2)
        if not self._said.acquire(blocking=False):
            return  # this process is ending by itself
        signals.write_line(f"process {process} has ended {HOW[how]}")
        self._tell(process, "lost")
        self._await_others()
        os._exit(1)


def _receive(connection: socket.socket, index: int) -> tuple[int, How]:
    """Reads from the connection with process `index` which process has ended, and how."""
    try:
        message = json.loads(connection.recv(MESSAGE).splitlines()[0])
        return int(message["process"]), message["how"]
    except (OSError, ValueError, LookupError):
        return index, "lost"


def _keep_alive(connection: socket.socket, silence: int) -> None:
    """Makes the kernel ask the other host for a sign of life, and give it up after `silence`."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Before JAX does, which counts from the last heartbeat.
    for name, value in (("IDLE", silence // 3), ("INTVL", silence // 6), ("CNT", 3)):
        if option := getattr(socket, f"TCP_KEEP{name}", None):  # as on Linux
            connection.setsockopt(socket.IPPROTO_TCP, option, max(value, 1))
