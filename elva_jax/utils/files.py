"""Files that are either complete or absent, locks between processes, and checksums."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    from zlib_ng.zlib_ng import crc32 as _crc32
except ImportError:  # where it has no wheel: the same sums, slower
    from zlib import crc32 as _crc32

BLOCK = 2**20  # bytes that are read at a time; they stay in the processor's cache


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names a file in errors of the operating system that name none, such as that of a full disk.

    Raises:
      OSError: what the block raises.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def open_atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` when the block ends, and is removed if it raises.

    A killed process leaves the old content or the new, never half of it. The temporary name holds
    host and process, so that several processes may write the same file at the same time.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a whole file at once, by `open_atomic`."""
    with open_atomic(path, "wb" if isinstance(content, bytes) else "w") as file:
        file.write(content)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds an exclusive lock on a file, creating it if needed; the lock ends with its process.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is False.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32(path: Path, begin: int = 0, end: int | None = None) -> int:
    """The CRC-32 of the bytes `begin` to `end` of a file; None: to its end."""
    block = memoryview(bytearray(BLOCK))
    checksum, remaining = 0, (path.stat().st_size if end is None else end) - begin
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while remaining > 0 and (count := file.readinto(block[: min(BLOCK, remaining)])):
            checksum, remaining = _crc32(block[:count], checksum), remaining - count
    return checksum
