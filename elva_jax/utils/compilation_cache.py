"""Compiled programs that outlive the process, so that a second start need not compile again."""

from __future__ import annotations

import os
from pathlib import Path

import jax

MOST_BYTES = 4 << 30  # beyond it, the programs that were used least recently go


def keep_programs(folder: str | Path | None = None) -> None:
    """Keeps what JAX compiles from now on in a folder.

    Args:
      folder: where; None: `JAX_COMPILATION_CACHE_DIR` if it is set, else `elva_jax` in the user's cache folder.
    """
    if folder is None:
        if jax.config.jax_compilation_cache_dir:
            return
        folder = (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            / "elva_jax"
            / "programs"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # A start of inference compiles many small programs: all are kept, not only those that take a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
