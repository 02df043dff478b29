"""Seeds that depend on their purpose alone."""

from __future__ import annotations

import hashlib


def stage_seed(seed: int, *words: str | int) -> int:
    """A 31-bit seed for one purpose, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
