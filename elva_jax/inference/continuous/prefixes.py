"""Prefilled prefixes by key: shared by all who ask about a video, least recently used out first."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

from elva_jax.inference.continuous.grid import Class
from elva_jax.inference.kv_cache import PrefixCache


@dataclasses.dataclass(kw_only=True, eq=False)
class PrefixEntry:
    """One prefilled prefix."""

    key: str
    layers: tuple[PrefixCache, ...]  # of every layer, B = 1, padded to the class
    lengths: Class
    tokens: tuple[int, ...]  # that each layer block worked on
    length: int  # the position where its text continues
    stretch: int = 0  # how RoPE is scaled (`long_context`)
    users: int = 0  # requests that read it

    @property
    def nbytes(self) -> int:
        """Device memory."""
        return sum(leaf.nbytes for layer in self.layers for leaf in layer)


class PrefixStore:
    """Keeps prefixes in use, and unused ones up to `limit` bytes.

    Only the engine's thread changes it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, PrefixEntry] = OrderedDict()
        self._unused_bytes = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def acquire(self, key: str) -> PrefixEntry | None:
        """The prefix of a key, which stays until `release`; None: it has to be prefilled."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        if entry.users == 0:
            self._unused_bytes -= entry.nbytes
        entry.users += 1
        return entry

    def add(self, entry: PrefixEntry) -> None:
        """Keeps a new prefix, with one user."""
        entry.users = 1
        self._entries[entry.key] = entry
        self.nbytes += entry.nbytes

    def release(self, entry: PrefixEntry) -> None:
        """Gives up one use of a prefix, which may end it or older ones."""
        entry.users -= 1
        if self._entries.get(entry.key) is not entry or entry.users:
            return
        self._unused_bytes += entry.nbytes
        for key, old in list(self._entries.items()):
            if self._unused_bytes <= self._limit:
                return
            if old.users == 0:
                del self._entries[key]
                self._unused_bytes -= old.nbytes
                self.nbytes -= old.nbytes

    def clear(self) -> None:
        """Forgets everything, as after an error of the device."""
        self._entries.clear()
        self._unused_bytes = self.nbytes = 0
