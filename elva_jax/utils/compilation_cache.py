"""JAX's persistent compilation cache: a second process loads programs instead of compiling them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax

MAX_BYTES = 4 << 30  # beyond it, the least recently used programs are evicted


def enable_compilation_cache(folder: str | Path | None = None) -> None:
    """Stores what JAX compiles from now on in a folder, and loads it from there.

    Args:
      folder: by default `JAX_COMPILATION_CACHE_DIR` if that is set, else `elva_jax/programs` in the
        user's cache folder.

    Example:
      >>> import elva_jax
      >>> elva_jax.enable_compilation_cache("programs")  # doctest: +SKIP
    """
    if folder is None:
        if jax.config.values["jax_compilation_cache_dir"]:
            return
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "elva_jax" / "programs"
    _remove_incomplete(Path(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    # Inference compiles many small programs, so even those that take less than a second are stored.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_incomplete(folder: Path) -> None:
    """Removes programs that a killed process has not written to the end.

    JAX 0.10 and 0.11 write a program, then the time of its last use. A program without a time would
    make every later write fail, with a warning for each program.
    """
    with contextlib.suppress(OSError):  # JAX says so when it cannot use the folder
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink(missing_ok=True)
