"""A meeting of all processes before JAX starts.

    1, 2, … -> 0   {"index", "facts"}           process 0 listens at the coordinator's port
    0 -> 1, 2, …   {} or {"kind", "text"}       start, or the error that every process raises

So the output of every host names the process that is missing or differs, in one line. Messages are
lines of JSON. The connections stay open for `lifeline`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from elva_jax.errors import ConfigError, StartError

RETRY_SECONDS = 0.5  # between two attempts to reach process 0
MESSAGE_SECONDS = 10.0  # for a message to arrive on an open connection
MAX_MESSAGE_BYTES = 1 << 22  # more does not come from a process of ours
MAX_LISTED = 5  # differences and missing processes in an error


def rendezvous(
    coordinator: str, count: int, index: int, facts: Mapping[str, Any], timeout: float
) -> dict[int, socket.socket]:
    """Returns when all processes have met and have the same facts.

    Args:
      coordinator: HOST:PORT of process 0.
      count: the number of processes.
      index: this process.
      facts: nested JSON-able values, compared with those of process 0 leaf by leaf.
      timeout: seconds to wait.

    Returns:
      Open connections by the index of the other process: those of process 0 with all others, and
      theirs with process 0.

    Raises:
      StartError: process 0 cannot be reached, or others did not come, in time.
      ConfigError: two processes have the same index, or differ in `count` or a fact.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    facts = {"number of processes": count, **json.loads(json.dumps(facts))}
    if index == 0:
        return _serve(int(port), count, facts, deadline, timeout)
    hello = {"index": index, "facts": facts}
    return {0: _connect(host.strip("[]"), int(port), hello, deadline, timeout)}


def _serve(
    port: int, count: int, facts: dict[str, Any], deadline: float, timeout: float
) -> dict[int, socket.socket]:
    """Process 0: collects the others, and answers all of them at once."""
    waiting: dict[int, socket.socket] = {}
    problem: ConfigError | StartError | None = None
    with _listen(port, count) as server:
        while problem is None:
            # A process may have died while it waited, and its launcher may start it again.
            waiting = {i: other for i, other in waiting.items() if not _is_closed(other)}
            if len(waiting) == count - 1:
                break
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                problem = _missing(set(range(1, count)) - waiting.keys(), count, timeout)
                break
            hello = _receive(connection, min(deadline, time.monotonic() + MESSAGE_SECONDS))
            if hello is None or not {"index", "facts"} <= hello.keys():
                connection.close()  # not a process of ours
                continue
            index = hello["index"]
            reason = _difference(facts, hello["facts"], index)
            if not reason and (index == 0 or (index in waiting and not _is_closed(waiting[index]))):
                reason = f"two processes claim to be process {index}"
            if reason:
                problem, index = ConfigError(reason), -1  # -1: does not replace the first claimant
            waiting[index] = connection
        answer = {} if problem is None else {"kind": type(problem).__name__, "text": str(problem)}
        for connection in waiting.values():
            _send(connection, answer)
    if problem is not None:
        for connection in waiting.values():
            connection.close()
        raise problem
    return waiting


def _listen(port: int, count: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=dual, backlog=max(count, 16)
        )
    except OSError as error:
        raise StartError(
            f"process 0 cannot listen on port {port}: {error.strerror};"
            " give --coordinator another port"
        ) from None


def _missing(indices: set[int], count: int, timeout: float) -> StartError:
    listed = ", ".join(map(str, sorted(indices)[:MAX_LISTED]))
    more = " …" if len(indices) > MAX_LISTED else ""
    return StartError(
        f"{len(indices)} of {count} processes did not come within {timeout:.0f} s: {listed}{more};"
        " check the logs of those processes"
    )


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection, or died."""
    connection.settimeout(0)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(None)


def _connect(
    host: str, port: int, hello: dict[str, Any], deadline: float, timeout: float
) -> socket.socket:
    """Any other process: sends its facts until process 0 has answered."""
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with contextlib.ExitStack() as stack:
                connection = socket.create_connection((host, port), timeout=left)
                stack.enter_context(connection)
                _send(connection, hello)
                # Process 0 answers by its own deadline, which is later if it started later.
                answer = _receive(connection, deadline + timeout)
                if answer == {}:
                    stack.pop_all()  # it stays open
                    return connection
        except OSError as error:
            answer, reason = None, error.strerror or str(error)
        if answer:
            raise (ConfigError if answer["kind"] == "ConfigError" else StartError)(answer["text"])
        time.sleep(RETRY_SECONDS)
    raise StartError(
        f"process 0 did not answer at {host}:{port} within {timeout:.0f} s"
        f" ({reason or 'it closed the connection'});"
        " is it running, and does its host accept connections to this port?"
    )


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return  # the other process has ended


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One line of JSON; None if no valid one arrives."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            piece = connection.recv(1 << 16)
            text += piece
            if not piece or len(text) > MAX_MESSAGE_BYTES:
                return None
        message = json.loads(text)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _difference(own: dict[str, Any], other: dict[str, Any], index: int) -> str:
    """How the facts of process `index` differ from those of process 0; empty where they agree."""
    mine, theirs = flatten_dict(own, sep="."), flatten_dict(other, sep=".")
    names = [
        name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)
    ]
    if not names:
        return ""
    listed = "; ".join(
        f"{name}: {theirs.get(name)!r}, in process 0 {mine.get(name)!r}"
        for name in names[:MAX_LISTED]
    )
    more = f"; and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"process {index} differs: {listed}{more}"
