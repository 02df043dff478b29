"""Media paths from annotation files, which may be malicious."""

from __future__ import annotations

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
        stays = _all_inside(root, path)
    except (ValueError, OSError, RuntimeError):
        # NUL bytes, lone surrogates, a name that is too long, cyclic links or missing permissions.
        raise RecordError(key, "a media path cannot be resolved") from None
    if not stays:
        raise RecordError(key, "a media path leaves the root folder")
    return str(path)


def _all_inside(root: Path, path: Path) -> bool:
    """Whether a resolved path, and each link in a folder of frames, leads to a place under root."""
    if not path.is_relative_to(root):
        return False
    if not path.is_dir():
        return True
    with os.scandir(path) as entries:
        return all(
            Path(entry.path).resolve().is_relative_to(root)
            for entry in entries
            if entry.is_symlink()
        )
