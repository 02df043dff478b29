"""One owner per folder, among processes of any hosts that share its file system.

    link(temporary, FOLDER/.owner)   atomic, also over NFS: there is one, with its whole content
    rewritten every BEAT_SECONDS     a sign of life, which any host can read
    removed at the end               or left behind by a killed process

A process that finds the file of a living owner is refused. The owner is dead if its process has
ended on this machine, or if the file does not change for STALE_SECONDS; no clocks are compared.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elva_jax.errors import StartError
from elva_jax.utils.files import naming, write_atomic

NAME = ".owner"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
LONGEST = 65_536  # bytes of the file
CLAIM_SECONDS = 0.05  # between two looks at a process that removes a dead owner's file
JOBS = {"SLURM_JOB_ID": "Slurm job", "JOB_NAME": "job", "OMPI_COMM_WORLD_SIZE": "mpirun of size"}


@contextlib.contextmanager
def own(folder: Path, report: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Owns an existing folder within the block; other processes that ask for it are refused.

    Takes up to STALE_SECONDS if another host's owner was killed.

    Args:
      folder: an existing folder.
      report: receives a line before a long wait.

    Raises:
      StartError: another process owns the folder; names it.
      OSError: the folder cannot be written.
    """
    path, me = folder / NAME, _describe_self()
    while not _create(path, me):
        other = _read(path)
        if other is None:  # its owner has just ended
            continue
        if not _is_dead(path, other, report):
            raise StartError(
                f"{folder}: is in use by {_words(other)}; wait for it, stop it, or choose another"
                f" folder (if it has ended, remove {path})"
            )
        _remove_dead(path, other["token"], report)
    ended = threading.Event()
    beat = threading.Thread(target=_keep, args=(path, me, ended), name="owner", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _remove(path, me["token"])


def _describe_self() -> dict[str, Any]:
    job = next((f"{what} {os.environ[key]}" for key, what in JOBS.items() if key in os.environ), "")
    return {
        "token": secrets.token_hex(8),
        "host": os.uname().nodename,
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "job": job,
        "user": _user(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "beats": 0,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        return str(os.getuid())


def _machine() -> str:
    """This boot of this kernel and the namespace of its process ids; the host where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since boot: ids are used again; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    except OSError:
        return "unknown"
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _create(path: Path, me: dict[str, Any]) -> bool:
    """Whether the file was created; False if there is one."""
    temporary = path.with_name(f"{NAME}.{me['token']}.new")
    try:
        with naming(path):
            temporary.write_text(json.dumps(me))
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with path.open("x") as file:
                file.write(json.dumps(me))
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """The owner; None if there is no file. A damaged file names nobody, and does not beat."""
    try:
        # O_NONBLOCK: a pipe, which is no owner's file, would wait for a writer.
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            found = json.loads(file.read(LONGEST) or b"")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    token = found.get("token")
    sound = isinstance(token, str) and token.isalnum() and len(token) <= 64  # part of a file's name
    return found if sound and found.keys() >= {"pid", "started"} else {"token": ""}


def _is_dead(path: Path, owner: dict[str, Any], report: Callable[[str], None]) -> bool:
    if owner.get("machine") == _machine() and Path("/proc/self/stat").exists():
        return _start_of(owner["pid"]) != owner["started"]
    report(
        f"{path.parent}: was in use by {_words(owner)}; waiting up to {STALE_SECONDS:.0f} s for a"
        " sign of life"
    )
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_SECONDS / 2))
        now = _read(path)
        if now is None:
            return True
        if now != owner:
            return False
    return True


def _words(owner: dict[str, Any]) -> str:
    if "pid" not in owner:
        return "a process whose file is damaged"
    job = f", {owner['job']}" if owner.get("job") else ""
    since, user = owner.get("since"), owner.get("user")
    return f"process {owner['pid']} on {owner.get('host')}{job} (user {user}, since {since})"


def _remove_dead(path: Path, token: str, report: Callable[[str], None]) -> None:
    """Removes the file of a dead owner, unless another process is doing it.

    Of several processes one creates a file named by the dead owner's token, and only that one may
    remove: a slower one would remove the file of the next owner. The same holds if it dies, too.
    """
    claim = path.with_name(f"{path.name}.{token}")
    if not _create(claim, _describe_self()):
        other = _read(claim)
        if other is not None and _is_dead(claim, other, report):
            _remove_dead(claim, other["token"], report)
        time.sleep(CLAIM_SECONDS)
        return
    _remove(path, token)
    claim.unlink(missing_ok=True)


def _remove(path: Path, token: str) -> None:
    """Removes the file if it is the one with this token, which no other process may remove."""
    found = _read(path)
    if found is not None and found["token"] == token:
        path.unlink(missing_ok=True)


def _keep(path: Path, me: dict[str, Any], ended: threading.Event) -> None:
    """The thread that rewrites the file; ends the process if it has been replaced."""
    while not ended.wait(BEAT_SECONDS):
        try:
            found = _read(path)
            if found is not None and found["token"] not in ("", me["token"]):
                text = f"{path.parent}: was taken over by {_words(found)} while this process slept"
                print(text, file=sys.stderr, flush=True)
                os._exit(1)
            me["beats"] += 1
            write_atomic(path, json.dumps(me))
        except OSError:
            continue  # a full disk or a storage that is away; the next beat tries again
