"""Media that a request names: `data:` URLs, and files below one folder. Nothing else is opened."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from pathlib import Path
from typing import Any

from elva_jax.data.readers import paths
from elva_jax.errors import RecordError
from elva_jax.utils.numbers import shown

DATA = re.compile(
    r"data:(?:image|video|application)/[\w.+-]{1,64}(?:;[\w.=+-]{1,64})*;base64,", re.ASCII
)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}:")
LARGEST_DATA = 2**28  # bytes of a medium


def is_data(name: object) -> bool:
    """Whether a name is a `data:` URL."""
    return isinstance(name, str) and name[:5].lower() == "data:"


def locate(root: Path, name: Any, key: str) -> str | bytes:
    """The path of a medium, or its bytes.

    Args:
      root: the resolved folder that paths are relative to and stay in.
      name: a path, a `file:` URL, or a `data:` URL in base64.
      key: what the errors are about.

    Raises:
      RecordError: another URL, base64 that cannot be decoded, or a path that leaves the folder.
    """
    if is_data(name):
        return _decode(name, key)
    if isinstance(name, str) and (scheme := SCHEME.match(name)):
        if scheme[0].lower() != "file:":
            raise RecordError(
                key, f"names a medium by the URL {shown(name)}; files and data: URLs are read"
            )
        name = _file_path(name[len("file:") :], key)
    return paths.inside(root, name, key)


def _file_path(rest: str, key: str) -> str:
    """The path of a `file:` URL, from what follows the scheme: //HOST/PATH, or PATH."""
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host not in ("", "localhost"):
        raise RecordError(key, f"the file {shown(f'//{host}{rest}')} is on another host")
    return urllib.parse.unquote(rest)


def _decode(url: str, key: str) -> bytes:
    head = DATA.match(url[:400])
    if not head:
        raise RecordError(key, "a data: URL is not like data:video/mp4;base64,…")
    if len(url) > LARGEST_DATA * 4 // 3:
        raise RecordError(key, f"a medium has more than {LARGEST_DATA >> 20} MiB")
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RecordError(key, "a data: URL is not base64") from None
    if not content:
        raise RecordError(key, "a data: URL is empty")
    return content
