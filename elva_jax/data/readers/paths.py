"""Paths out of annotation files, which strangers may have written."""

from __future__ import annotations

from pathlib import Path

from elva_jax.errors import DataError, RecordError


def root_folder(root: str, annotations: Path) -> Path:
    """The resolved folder that media paths are relative to: `root`, or where "" the one that the annotations are in.

    Raises:
      DataError: there is no such folder.
    """
    folder = Path(root).expanduser() if root else annotations.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set root to the folder that {annotations} speaks of")
    return folder.resolve()


def inside(root: Path, name: object, key: str) -> str:
    """The path of the medium `name` under the resolved folder `root`; whether it exists is seen when it is read.

    Raises:
      RecordError: of the record `key`: not a path, or one that leaves the root, be it by `..`, as an absolute path or by a link.
    """
    if not isinstance(name, str) or not name.strip():
        raise RecordError(key, "a media path is empty or no text")
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError):  # NUL bytes, lone surrogates, a name too long, links in a circle
        raise RecordError(key, "a media path is no valid path") from None
    if not path.is_relative_to(root) or path == root:
        raise RecordError(key, "a media path leaves the root folder")
    return str(path)
