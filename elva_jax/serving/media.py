"""Images and videos of requests: found, read, and kept for the next question about them."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from elva_jax.data.example import Media
from elva_jax.errors import RecordError, VideoError
from elva_jax.inference import media_urls
from elva_jax.inference.prompts import PromptReader
from elva_jax.serving.settings import ServeSettings
from elva_jax.serving.urls import Allowed, download, is_public
from elva_jax.utils.numbers import shown
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid


class VisualCache:
    """Media that were read, up to a number of bytes; the least recently used ones leave first.

    Every method may be called from any thread. What two threads ask for at once is read once.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Visual] = OrderedDict()
        self._reading: dict[Hashable, Future[Visual]] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, read: Callable[[], Visual]) -> Visual:
        """The medium of a key, read by `read` unless it is there; raises what `read` raises."""
        with self._lock:
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            other = self._reading.get(key)
            if other is None:
                self.misses += 1
                mine = self._reading[key] = Future()
            else:
                self.hits += 1
        if other is not None:
            return other.result()
        try:
            found = read()
        except BaseException as error:
            with self._lock:
                del self._reading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._reading[key]
            self._keep(key, found)
        mine.set_result(found)
        return found

    def _keep(self, key: Hashable, found: Visual) -> None:
        if found.patches.nbytes > self._most:
            return
        self._kept[key] = found
        self.bytes += found.patches.nbytes
        while self.bytes > self._most:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= dropped.patches.nbytes


class MediaReader:
    """Finds and reads what requests name.

    Args:
      model: reads media as its last stage does.
      settings: which files and URLs are allowed, and the limits.
      allowed: says which addresses downloads may reach.
    """

    def __init__(
        self, model: PromptReader, settings: ServeSettings, allowed: Allowed = is_public
    ) -> None:
        self._model, self._settings, self._allowed = model, settings, allowed
        self._root = settings.media_dir.resolve() if settings.media_dir else None
        self.cache = VisualCache(settings.media_cache)

    def locate(self, url: Any) -> str | bytes:
        """The path or the bytes of what a request names.

        Raises:
          RecordError: a file or URL that is not allowed.
          VideoError: a URL that cannot be downloaded.
        """
        if media_urls.is_data(url):
            return media_urls.locate(Path(), url, "messages")
        scheme = media_urls.SCHEME.match(url) if isinstance(url, str) else None
        if scheme and scheme[0].lower() in ("http:", "https:"):
            return self._download(url)
        if self._root is None:
            raise RecordError(
                "messages", "names a file, and this server reads none (its --media-dir is not set)"
            )
        return media_urls.locate(self._root, url, "messages")

    def _download(self, url: str) -> bytes:
        settings = self._settings
        if not settings.allow_urls:
            raise RecordError(
                "messages",
                "names a URL, and this server downloads nothing (its --allow-urls is not set);"
                " send the medium as a data: URL",
            )
        try:
            host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
        except ValueError:
            raise RecordError("messages", "names a URL that cannot be read") from None
        return download(
            url,
            most=settings.max_media_bytes,
            seconds=settings.media_seconds,
            name=f"the medium of {shown(host)}",
            allowed=self._allowed,
        )

    def read(self, media: tuple[Media, ...], frames: int | Hybrid | None) -> tuple[Visual, ...]:
        """The media of a request, in order.

        Args:
          media: as `locate` found them.
          frames: how videos are sampled that do not say it themselves.

        Raises:
          VideoError: one that cannot be read; its name is the client's.
        """
        return tuple(self._one(item, frames, number) for number, item in enumerate(media, 1))

    def _one(self, item: Media, frames: int | Hybrid | None, number: int) -> Visual:
        count = 1 if item.kind == "image" else item.frames or frames
        name = self._name(item.source, f"{item.kind} {number} of the request")

        def read() -> Visual:
            return self._model.read_media(
                item.source,
                frames=count,
                name=name,
                span=item.span,
                seconds=self._settings.media_seconds,
            )

        return self.cache.get((_content(item.source, name), item.span, count), read)

    def _name(self, source: Any, otherwise: str) -> str:
        """A medium in errors: never a path of the server above its folder of media."""
        if isinstance(source, str) and self._root is not None:
            return os.path.relpath(source, self._root)
        return otherwise

    def check_number(self, count: int) -> None:
        """Refuses requests with too many media.

        Raises:
          RecordError: there are more than `max_media`.
        """
        if count > self._settings.max_media:
            raise RecordError(
                "messages", f"has more than {self._settings.max_media} images and videos"
            )


def _content(source: Any, name: str) -> Hashable:
    """Equal for equal content: a hash of bytes, or what changes when a file does."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    try:
        found = os.stat(source)
        within = tuple(sorted(_stats(source))) if os.path.isdir(source) else ()
    except OSError:
        raise VideoError(name, "no such file") from None
    return source, found.st_size, found.st_mtime_ns, found.st_ino, within


def _stats(folder: str) -> list[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries]
