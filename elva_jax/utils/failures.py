"""One line for every error that comes from a user's surroundings: disk, memory, encoding, files."""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from concurrent.futures.process import BrokenProcessPool

from elva_jax.errors import ConfigError, DataError, ElvaError, first_line, printable

FAILED, MISUSED, BUG = 1, 2, 70  # exit statuses; 70 is EX_SOFTWARE of sysexits.h

# What to do about an errno; others are only named.
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EEXIST: "name another path",
    errno.ENOTEMPTY: "name another path",
    errno.ELOOP: "remove the circle of links",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EINVAL: "name another path",
    errno.ENXIO: "name a regular file",
    errno.ENODEV: "name a regular file",
    errno.ESPIPE: "name a regular file",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise fs.file-max",
    errno.ENOSPC: "free some space, or name another disk",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or name another disk",
    errno.EROFS: "name a path on a disk that can be written",
    errno.EIO: "the disk or the connection to it is failing; check it, or copy the file elsewhere",
    errno.ESTALE: "the file server has lost the file; start again",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.ENOMEM: "free memory, or use smaller settings",
    errno.ETXTBSY: "wait until the program that uses it has ended",
    errno.ENOSYS: "the file system cannot do this; name another one",
    errno.EOPNOTSUPP: "the file system cannot do this; name another one",
    errno.ENOLCK: "the file system cannot lock files; name another one",
    errno.EADDRINUSE: "choose another port",
    errno.EADDRNOTAVAIL: "name an address of this machine",
    errno.ECONNREFUSED: "check the address, and whether the server runs",
    errno.ECONNRESET: "the other side closed the connection; start again",
    errno.ETIMEDOUT: "check the network, then start again",
    errno.EHOSTUNREACH: "check the address and the network",
    errno.ENETUNREACH: "check the address and the network",
}
MEMORY = "use smaller settings (batch, frames, length, workers), or a machine with more memory"
# First module of an exception's class: what the user's file was, and the way out.
LIBRARIES = {
    "jinja2": ("a chat template is invalid", "repair chat_template in the tokenizer's folder"),
    "re": ("a regular expression is invalid", "correct the pattern"),
    "json": ("text that should be JSON is damaged", "repair the file, or copy it again"),
    "yaml": ("text that should be YAML is damaged", "repair the file"),
    "zipfile": ("an archive is damaged", "copy the file again"),
    "tarfile": ("an archive is damaged", "copy the file again"),
    "pyarrow": ("a data file is damaged", "copy the file again"),
    "safetensors_rust": ("a safetensors file is damaged", "copy the file again"),
    "huggingface_hub": ("the hub did not give the files", "check the name and the network"),
    "httpx": ("a request failed", "check the address and the network"),
}

# Beginnings of what Python and JAX raise as RuntimeError or ValueError.
BUILT_IN = {
    "can't start new thread": "raise the limit of processes (ulimit -u)",
    "Unable to initialize backend": "check the drivers, or set JAX_PLATFORMS=cpu",
    "Symlink loop": "remove the circle of links",
    "embedded null": "a path contains a null character; name another path",
}


def explain(error: BaseException) -> str | None:
    """One line about an error that is no bug: what is wrong with what, and the way out.

    Args:
      error: what a command has raised.

    Returns:
      The line, or None if the error can only be a bug of this package.
    """
    text = first_line(error)
    if isinstance(error, ElvaError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory ({text}); {MEMORY}"
    if isinstance(error, UnicodeError):
        return _unicode(error)
    if isinstance(error, RecursionError):
        return "a file or value is nested too deeply; simplify it (--debug shows where it is used)"
    if isinstance(error, BrokenProcessPool):
        return f"a worker process was killed, perhaps for its memory; {MEMORY}"
    name = type(error).__name__
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if name in ("XlaRuntimeError", "JaxRuntimeError", "OutOfMemoryError") and (
        "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    ):
        return f"the device has not enough memory ({text}); {MEMORY}"
    for module, (what, remedy) in LIBRARIES.items():
        if module in modules:
            return f"{what} ({text}); {remedy}"
    if isinstance(error, OSError):
        return _system(error)
    for start, remedy in BUILT_IN.items():
        if type(error) in (RuntimeError, ValueError) and text.startswith(start):
            return f"{text}; {remedy}"
    return None


def _system(error: OSError) -> str:
    """The line of an error of the operating system."""
    names = [repr_path(name) for name in (error.filename, error.filename2) if name is not None]
    if not names and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EPIPE):
        names = ["standard output, or a file that is written"]
    where = f"{' -> '.join(names)}: " if names else ""
    remedy = REMEDIES.get(error.errno or 0, "--debug shows where")
    return f"{where}{error.strerror or first_line(error)}; {remedy}"


def reason(error: Exception, path: str | os.PathLike) -> str:
    """Why a file cannot be used, in parentheses, and the way out; the caller has named the path."""
    text = (explain(error) or first_line(error)).removeprefix(f"{repr_path(path)}: ")
    what, semicolon, remedy = text.partition("; ")
    return f"({what}){semicolon}{remedy}"


def repr_path(path: object) -> str:
    """A path as it may stand within one line: as it is, or quoted if it holds other characters."""
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    shown = text if text and text.isprintable() else repr(text)
    return shown if len(shown) <= 300 else f"{shown[:200]}…{shown[-60:]}"


def _unicode(error: UnicodeError) -> str:
    if not isinstance(error, (UnicodeEncodeError, UnicodeDecodeError)):
        return f"text with invalid characters ({first_line(error)}); give it in UTF-8"
    part = error.object[error.start : error.end][:8]
    return f"text with invalid characters, {part!r} ({error.reason}); give it in UTF-8"


def portable(error: Exception) -> Exception:
    """The error of a worker process as its parent can report it: one that can be pickled."""
    if isinstance(error, ElvaError):
        return error
    if line := explain(error):
        return DataError(line)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return RuntimeError(f"{type(error).__name__}: {first_line(error)} (a worker, at {where})")


def report(error: BaseException, command: str, *, debug: bool) -> int:
    """Prints one line about an error to standard error, and its trace if `debug`.

    Returns:
      The exit status: 1, 2 for a mistake in the configuration, or 70 for a bug of this package.
    """
    if debug:
        traceback.print_exception(error)
    message = explain(error)
    status = MISUSED if isinstance(error, ConfigError) else FAILED
    if message is None:
        status = BUG
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" at {os.path.basename(where[0].filename)}:{where[0].lineno}" if where else ""
        message = (
            f"{type(error).__name__}: {first_line(error)}{place}; this is a bug of elva_jax:"
            " please report it in its issue tracker with this command"
        )
        message += "" if debug else " and the trace that --debug shows"
    line = printable(" ".join(message.splitlines()))
    print(f"{command}: {line}", file=sys.stderr, flush=True)
    return status


def wants_debug() -> bool:
    """Whether --debug or ELVA_DEBUG asks for traces; worker processes inherit the variable."""
    return os.environ.get("ELVA_DEBUG", "") not in ("", "0")


def report_in_threads() -> None:
    """Errors that end a thread are one line, too, unless traces are asked for."""

    def report_thread(problem: threading.ExceptHookArgs) -> None:
        if problem.exc_value is not None and not issubclass(problem.exc_type, SystemExit):
            report(problem.exc_value, "elva (in a thread)", debug=wants_debug())

    threading.excepthook = report_thread
