"""The settings of a server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from elva_jax.errors import ConfigError
from elva_jax.utils import numbers
from elva_jax.utils.failures import repr_path

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Names, keys and limits of a server.

    Attributes:
      model_names: what clients may call the model; the first one stands in replies.
      api_key: what clients must send as a bearer token; "": nothing.
      allowed_hosts: names by which clients may call the server besides its loopback address; "*":
        any. Without names, a server on another address than loopback answers to any.
      cors: origins of web pages that may read replies; "*": all.
      media_dir: the folder below which clients may name files; None: they may not.
      allow_urls: whether media may be downloaded from public addresses.
      most_requests: requests that are in work at once, from their first byte to their last.
      max_body: bytes of a request; all requests together may hold BODIES times as many.
      max_media: images and videos of a request.
      max_media_bytes: bytes of one that is downloaded or inline.
      max_pixel_bytes: bytes of the frames that a request may ask for.
      max_new_tokens: longest answer; also the length where a request does not say.
      max_prompt_tokens: longest prompt, before merging.
      media_cache: bytes of media that stay in memory after they were read.
      readers: threads that read media and render prompts.
      header_seconds: from the opening of a connection to the end of a request's headers.
      body_seconds: for the body.
      media_seconds: for reading one image or video, and for a download.
      write_seconds: for a client to take what is sent to it.
      drain_seconds: for running requests to end, after the server was asked to.

    Raises:
      ConfigError: a value that is out of range, or a folder that does not exist.
    """

    model_names: tuple[str, ...] = ("elva",)
    api_key: str = ""
    allowed_hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    media_dir: Path | None = None
    allow_urls: bool = False
    most_requests: int = 128
    max_body: int = 64 * MEBIBYTE
    max_media: int = 128
    max_media_bytes: int = 256 * MEBIBYTE
    max_pixel_bytes: int = 1024 * MEBIBYTE
    max_new_tokens: int = 512
    max_prompt_tokens: int = 4096
    media_cache: int = 512 * MEBIBYTE
    readers: int = 4
    header_seconds: float = 10.0
    body_seconds: float = 120.0
    media_seconds: float = 60.0
    write_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("most_requests", "max_media", "readers"):
            numbers.ROWS.check(name, getattr(self, name))
        for name in ("max_new_tokens", "max_prompt_tokens"):
            numbers.TOKENS.check(name, getattr(self, name))
        for field in dataclasses.fields(self):
            if field.name.endswith("_seconds"):
                numbers.SECONDS.check(field.name, getattr(self, field.name))
        if not self.model_names or not all(self.model_names):
            raise ConfigError("--served-model-name: give the model a name")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("--api-key: use printable ASCII, which HTTP headers can hold")
        if self.media_dir is not None and not self.media_dir.is_dir():
            raise ConfigError(f"--media-dir {repr_path(self.media_dir)}: no such folder")
