"""Media paths from annotation files, which may be malicious.

A medium lies below the root folder after all links have been followed. A snapshot in a cache of the
Hugging Face hub consists of links to that cache's blobs, so these count as below it:

    datasets--org--name/snapshots/REVISION/x.mp4 → datasets--org--name/blobs/HASH
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from elva_jax.errors import DataError, ElvaError, RecordError


def root_folder(root: str, annotations: Path) -> Path:
    """Resolves the folder of media: `root`, or the folder of the annotations if it is "".

    Raises:
      DataError: the folder does not exist.
    """
    folder = Path(root).expanduser() if root else annotations.parent
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; set root to the folder of the media of {annotations}"
        )
    return folder.resolve()


def check_some_exist(
    media: Sequence[str | Path], message: str, error: type[ElvaError] = DataError
) -> None:
    """Refuses a folder of media that holds none of some that are expected there.

    Args:
      media: their paths; where there are none, nothing is refused.
      message: of the error.
      error: its type.

    Raises:
      ElvaError: of the type `error`: not one of the paths exists.
    """
    if media and not any(map(os.path.exists, media)):
        raise error(message)


def inside(root: Path, name: object, key: str) -> str:
    """The path of the medium `name` under the resolved folder `root`; the file need not exist.

    Raises:
      RecordError: the name is not a path, or leaves the root through `..`, as an absolute path or
        through a link; the error is about the record `key`.
    """
    if not isinstance(name, str) or not name.strip():
        raise RecordError(key, "a media path is empty or not text")
    try:
        path = (root / name).resolve()
        below = Path(os.path.normpath(root / name)).is_relative_to(root)
        allowed = lies_below(path, places(root) if below else (root,))
    except (ValueError, OSError, RuntimeError):
        # NUL bytes, lone surrogates, a name that is too long, cyclic links or missing permissions.
        raise RecordError(key, "a media path cannot be resolved") from None
    if not allowed:
        raise RecordError(key, "a media path leaves the root folder")
    return str(path)


def named(root: Path, name: object, key: str) -> str:
    """As `inside`, but links below the folder are neither followed nor checked.

    Args:
      root: a resolved folder.
      name: the path of a medium below it.
      key: the record, for messages.

    Raises:
      RecordError: the name is not a path, or leaves the root through `..` or as an absolute path.
    """
    if isinstance(name, str) and name.strip() and "\0" not in name:
        path = Path(os.path.normpath(root / name))
        # Some texts of JSON cannot name a file: those with lone surrogates.
        with contextlib.suppress(UnicodeEncodeError):
            os.fsencode(path)
            if path.is_relative_to(root):
                return str(path)
    return inside(root, name, key)


def places(root: Path) -> tuple[Path, ...]:
    """The folders below which the media of a root folder may lie: itself, and its hub's blobs."""
    root = root.resolve()
    for folder in (root, *root.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and "--" in repository.name:
            return root, repository / "blobs"
    return (root,)


def lies_below(path: str | Path, folders: Sequence[Path]) -> bool:
    """Whether a medium, and each link in a folder of frames, leads to a place below the folders.

    Args:
      path: the medium, which need not exist.
      folders: resolved.

    Raises:
      OSError, RuntimeError, ValueError: the path cannot be resolved.
    """
    path = Path(path).resolve()
    if not any(path.is_relative_to(folder) for folder in folders):
        return False
    if not path.is_dir():
        return True
    with os.scandir(path) as entries:
        links = [Path(entry.path).resolve() for entry in entries if entry.is_symlink()]
    return all(any(link.is_relative_to(folder) for folder in folders) for link in links)
