"""The way to open what a user or a file names: regular files only, of bounded size and depth."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from elva_jax.errors import ConfigError, DataError, ElvaError, first_line
from elva_jax.utils.failures import reason, repr_path
from elva_jax.utils.files import open_atomic

MEBIBYTE = 2**20
LARGEST_TEXT = 256 * MEBIBYTE  # of configurations, tokenizers, manifests, lines and tar members
LARGEST_ARRAY = 8192 * MEBIBYTE  # of a JSON array of records
TEXT_ENDINGS = (".json", ".txt", ".jinja", ".md", ".py")
DEEPEST = 200  # arrays and objects within one another
MOST_DIGITS = 300  # of a whole number; more are beyond float64
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
T = TypeVar("T", dict, list)


def open_regular(path: str | Path, error: type[ElvaError] = DataError) -> IO[bytes]:
    """Opens a regular file for reading bytes, without waiting for the writer of a pipe.

    Raises:
      ElvaError: of the type `error`: the file cannot be opened, or is a folder, pipe, socket or
        device.
    """
    try:
        # O_NONBLOCK: a pipe without a writer is opened at once. Regular files ignore it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        if kind := _irregular(path):
            raise error(f"{repr_path(path)}: is {kind}; name a regular file") from None
        why = reason(problem, path)
        raise error(f"{repr_path(path)}: cannot be opened {why}") from problem
    try:
        if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
            raise error(f"{repr_path(path)}: is {kind}; name a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _irregular(path: str | Path) -> str | None:
    """The kind of a path that is neither missing nor a regular file."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def read_bytes(
    path: str | Path, error: type[ElvaError] = DataError, limit: int = LARGEST_TEXT
) -> bytes:
    """The whole content of a regular file.

    Args:
      path: the file.
      error: type of the errors.
      limit: largest number of bytes.

    Raises:
      ElvaError: of the type `error`: the file cannot be read, is not a regular file, or is larger
        than the limit, which the message names.
    """
    with open_regular(path, error) as file, _reading(path, error):
        content = file.read(limit + 1)
    if len(content) > limit:
        raise error(
            f"{repr_path(path)}: has more than {limit >> 20} MiB, the limit of a file of its kind;"
            " divide it, or check whether it is the right file"
        )
    return content


def read_text(path: str | Path, error: type[ElvaError] = DataError) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    Raises:
      ElvaError: of the type `error`: as `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{repr_path(path)}: is not UTF-8 text (byte {problem.start}); save it as UTF-8"
        ) from None


def parse_json(text: str | bytes, *, unique: bool = True, finite: bool = True) -> Any:
    """A JSON value, of at most `DEEPEST` levels.

    Args:
      text: the JSON text.
      unique: refuse an object with the same key twice, instead of keeping the last value.
      finite: refuse NaN and Infinity, which JSON does not have, and numbers beyond float64.

    Raises:
      ValueError: the text is not UTF-8, not JSON, too deep, repeats a key, or holds a number that
        is not finite; the message is one line.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise ValueError(f"not UTF-8 text (byte {problem.start})") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique if unique else None,
            parse_constant=_finite if finite else None,
            parse_float=_finite if finite else None,
            parse_int=_whole if finite else None,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of key-value pairs.

    Raises:
      ValueError: a key occurs twice.
    """
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key!r} occurs twice in an object")
        value[key] = item
    return value


def _finite(text: str) -> float:
    """The number in a text.

    Raises:
      ValueError: it is NaN, an infinity, or beyond float64.
    """
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:40]} is not finite; write null, or leave it out")
    return value


def _whole(text: str) -> int:
    """The whole number in a text.

    Raises:
      ValueError: it is beyond float64, so that no computation could take it.
    """
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {text[:40]}… has more than {MOST_DIGITS} digits")
    return int(text)


def _depth(value: Any) -> int:
    """Levels of arrays and objects, counted without recursion."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [v for item in level for v in (item.values() if isinstance(item, dict) else item)]
    return depth


def read_json(
    path: str | Path,
    error: type[ElvaError] = DataError,
    kind: type[T] = dict,  # type: ignore[assignment]
    remedy: str = "repair it, or copy it again",
) -> T:
    """The JSON object (or array) in a file.

    Args:
      path: the file.
      error: type of the errors.
      kind: dict or list, the type of the outermost value.
      remedy: the way out where the content is damaged.

    Raises:
      ElvaError: of the type `error`: the file cannot be read, is damaged, or holds another type.
    """
    content = read_bytes(path, error)
    try:
        value = parse_json(content)
    except ValueError as problem:
        raise error(f"{repr_path(path)}: is not JSON ({problem}); {remedy}") from None
    if not isinstance(value, kind):
        wanted = {dict: "object", list: "array"}[kind]
        raise error(
            f"{repr_path(path)}: expected a JSON {wanted}, got {type(value).__name__}; {remedy}"
        )
    return value


def read_lines(
    path: str | Path, error: type[ElvaError] = DataError, limit: int = LARGEST_TEXT
) -> Iterator[bytes]:
    """The lines of a regular file with their ends, of bounded length each.

    Raises:
      ElvaError: of the type `error`: the file cannot be read, or a line is longer than the limit.
    """
    with open_regular(path, error) as file, _reading(path, error):
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise error(
                    f"{repr_path(path)}: line {number} has more than {limit >> 20} MiB, the limit"
                    " of a line; check whether it is the right file"
                )
            yield line


@contextlib.contextmanager
def _reading(path: str | Path, error: type[ElvaError]) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        why = reason(problem, path)
        raise error(f"{repr_path(path)}: cannot be read {why}") from problem
    except MemoryError:
        raise error(f"{repr_path(path)}: does not fit into memory; divide it") from None


def refuse_irregular(folder: str | os.PathLike[str], error: type[ElvaError] = DataError) -> None:
    """Checks the files of a folder that another library opens by name.

    Raises:
      ElvaError: of the type `error`: one is a pipe, socket or device, for which the library would
        wait, or a text file above `LARGEST_TEXT`.
    """
    entries: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError, ValueError):  # no folder, or no access: the library says so
        entries = list(os.scandir(os.fspath(folder)))
    for entry in entries:
        try:
            found = entry.stat()
        except OSError:  # a broken link
            continue
        if stat.S_ISDIR(found.st_mode):
            continue
        if kind := KINDS.get(stat.S_IFMT(found.st_mode)):
            raise error(f"{repr_path(entry.path)}: is {kind}; replace it by a regular file")
        if found.st_size > LARGEST_TEXT and entry.name.endswith(TEXT_ENDINGS):
            raise error(
                f"{repr_path(entry.path)}: has more than {LARGEST_TEXT >> 20} MiB, the limit of a"
                " text file; check whether it is the right file"
            )


@contextlib.contextmanager
def opening(
    path: str | Path, error: type[ElvaError], remedy: str = "download or copy it again"
) -> Iterator[None]:
    """Makes one line of what another library raises, of any type, when it opens a user's files.

    Args:
      path: the folder or file that the library opens within the block.
      error: type of the errors.
      remedy: the way out.

    Raises:
      ElvaError: of the type `error`; errors of this package, missing packages and a lack of memory
        stay what they are.
    """
    refuse_irregular(path, error)
    try:
        yield
    except (ElvaError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as problem:
        text = f"{type(problem).__name__}: {first_line(problem)}"
        raise error(f"{repr_path(path)}: cannot be loaded ({text}); {remedy}") from problem


def check_output(path: str | Path, name: str = "", error: type[ElvaError] = ConfigError) -> Path:
    """Checks before any work that a file can be written; nothing is changed.

    Args:
      path: the file; missing folders above it can be made later.
      name: of the option, in messages.
      error: type of the errors.

    Raises:
      ElvaError: of the type `error`: the path is a folder, pipe, socket or device, or the file or
        its folder cannot be written.
    """
    path, where = Path(path), f"{name} {repr_path(path)}".strip()
    if not path.name:
        raise error(f"{where}: names no file; name a file that can be written")
    if kind := _irregular(path):
        raise error(f"{where}: is {kind}; name a file that can be written")
    with _writing(path, where, error):
        if os.path.lexists(path):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        _check_folder(path.parent, path.name)
    return path


@contextlib.contextmanager
def open_output(path: Path, name: str, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file that `check_output` has allowed; it is replaced as a whole by `open_atomic`.

    Missing folders above it are made. A link keeps its place: the file that it names is replaced.

    Args:
      path: the file.
      name: of the option, in messages.
      mode: "w" or "wb".

    Raises:
      ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path.resolve(), mode) as file:
            yield file
    except OSError as error:
        raise ConfigError(
            f"{name} {repr_path(path)}: cannot be written {reason(error, path)}"
        ) from error


def check_output_folder(
    path: str | Path, name: str = "", error: type[ElvaError] = ConfigError
) -> Path:
    """Checks before any work that a folder can be made, or written to; nothing is changed.

    Raises:
      ElvaError: of the type `error`: the path is no folder, or cannot be written.
    """
    path, where = Path(path), f"{name} {repr_path(path)}".strip()
    with _writing(path, where, error):
        _check_folder(path, ".probe")
    return path


def _check_folder(folder: Path, name: str) -> None:
    """Creates and removes a file in a folder, or in the nearest existing one above it."""
    while not os.path.lexists(folder):
        folder, name = folder.parent, folder.name
    probe = folder / f".{name}.{os.getpid()}.tmp"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    probe.unlink(missing_ok=True)  # another host may use the same name


@contextlib.contextmanager
def _writing(path: Path, where: str, error: type[ElvaError]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as problem:
        problem_path = getattr(problem, "filename", None) or path
        why = reason(problem, problem_path)
        raise error(f"{where}: cannot be written {why}") from problem
