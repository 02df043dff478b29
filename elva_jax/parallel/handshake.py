"""A meeting of all processes before JAX starts, so that one that stays away, or differs, is named in one line on every host.

Process 0 listens where JAX's coordinator will; each of the others sends one line of JSON and waits for one line back.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from elva_jax.errors import ConfigError, StartError

PAUSE = 0.5  # seconds between two tries to reach process 0
GREETING = 10.0  # seconds for a line to arrive on a connection that is open
LONGEST = 1 << 22  # bytes of a line; more is no process of ours
SHOWN = 5  # differences and missing processes that a message lists


def meet(
    coordinator: str, count: int, index: int, facts: Mapping[str, Any], timeout: float
) -> None:
    """Returns when all `count` processes have met and agree on `facts`.

    Args:
      coordinator: HOST:PORT of process 0.
      count: processes.
      index: this one.
      facts: JSON-able, nested as deeply as wanted; compared with those of process 0 leaf by leaf.
      timeout: seconds to wait.

    Raises:
      StartError: process 0 cannot be reached, or others did not come, in time.
      ConfigError: two processes have the same number, or differ in `count` or a fact.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    hello = {
        "index": index,
        "facts": {"number of processes": count, **json.loads(json.dumps(facts))},
    }
    if index == 0:
        _host(int(port), count, hello, deadline, timeout)
    else:
        _visit(host.strip("[]"), int(port), hello, deadline, timeout)


def _host(port: int, count: int, own: dict[str, Any], deadline: float, timeout: float) -> None:
    dual = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=max(count, 16),
        )
    except OSError as error:
        raise StartError(
            f"process 0 cannot listen on port {port}: {error.strerror}; give --coordinator another port"
        ) from None
    waiting: dict[int, socket.socket] = {}
    problem: Exception | None = None
    with server:
        while problem is None:
            waiting = {
                index: connection for index, connection in waiting.items() if not _gone(connection)
            }
            if len(waiting) == count - 1:
                break
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                problem = _missing(
                    [index for index in range(1, count) if index not in waiting], count, timeout
                )
                break
            hello = _receive(connection, min(deadline, time.monotonic() + GREETING))
            if hello is None or not {"index", "facts"} <= hello.keys():
                connection.close()
                continue
            index = hello["index"]
            reason = _difference(own["facts"], hello["facts"], index)
            if not reason and (index == 0 or (index in waiting and not _gone(waiting[index]))):
                reason = f"two processes say that they are process {index}"
            if reason:
                problem = ConfigError(reason)
                index = -1
            waiting[index] = connection
        answer = {} if problem is None else {"kind": type(problem).__name__, "text": str(problem)}
        for connection in waiting.values():
            with connection:
                _send(connection, answer)
    if problem is not None:
        raise problem


def _missing(missing: list[int], count: int, timeout: float) -> StartError:
    listed = ", ".join(map(str, missing[:SHOWN])) + (" …" if len(missing) > SHOWN else "")
    return StartError(
        f"{len(missing)} of {count} processes did not come within {timeout:.0f} s: {listed}; see what became of them"
    )


def _gone(connection: socket.socket) -> bool:
    """Whether the other side has closed, or died; a launcher may then start it anew."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def _visit(host: str, port: int, hello: dict[str, Any], deadline: float, timeout: float) -> None:
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                _send(connection, hello)
                # Process 0 answers at its own deadline at the latest, which is later than ours where it started later.
                answer = _receive(connection, deadline + timeout)
        except OSError as error:
            answer, reason = None, error.strerror or str(error)
        if answer == {}:
            return
        if answer:
            raise (ConfigError if answer["kind"] == "ConfigError" else StartError)(answer["text"])
        time.sleep(PAUSE)
    raise StartError(
        f"process 0 did not answer at {host}:{port} within {timeout:.0f} s ({reason or 'it closed the connection'});"
        " is it running, and does its host let this port in?"
    )


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return  # who has gone away misses it


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One line of JSON; None where none comes."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            piece = connection.recv(1 << 16)
            text += piece
            if not piece or len(text) > LONGEST:
                return None
        message = json.loads(text)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _difference(own: Mapping[str, Any], other: Mapping[str, Any], index: int) -> str:
    """What process `index` has that process 0 has not; empty where they agree."""
    mine, theirs = flatten_dict(own, sep="."), flatten_dict(other, sep=".")
    names = [
        name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)
    ]
    if not names:
        return ""
    listed = "; ".join(
        f"{name}: {theirs.get(name)!r}, in process 0 {mine.get(name)!r}" for name in names[:SHOWN]
    )
    return f"process {index} differs: {listed}" + (
        f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
