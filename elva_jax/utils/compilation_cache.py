"""JAX's persistent compilation cache: a second process loads programs instead of compiling them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

MAX_BYTES = 4 << 30  # beyond it, the least recently used programs are evicted
STORE_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable_compilation_cache(folder: str | Path | None = None) -> None:
    """Stores what JAX compiles from now on in a folder, and loads it from there.

    Args:
      folder: by default `JAX_COMPILATION_CACHE_DIR` if that is set, whose size is then for JAX's
        settings to limit, else `elva_jax/programs` in the user's cache folder.

    Example:
      >>> import elva_jax
      >>> elva_jax.enable_compilation_cache("programs")  # doctest: +SKIP
    """
    if folder is None:
        if jax.config.values["jax_compilation_cache_dir"]:
            _store_small_programs(set(map(str.lower, os.environ)))
            return
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "elva_jax" / "programs"
    _remove_incomplete(Path(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    _store_small_programs(set())


def _store_small_programs(given: set[str]) -> None:
    """Stores programs that take less than a second, too, unless settings are `given`.

    Inference compiles many of them.
    """
    for name in set(STORE_ALL) - given:
        jax.config.update(name, STORE_ALL[name])


@contextlib.contextmanager
def on_compilation(heard: Callable[[float], None]) -> Iterator[None]:
    """Within it, calls `heard` with the seconds of each program that is compiled or loaded.

    The call is on the thread that needs the program.
    """

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            heard(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class ProgramCount:
    """Within it, the programs that any thread compiles, or loads from the folder.

    Attributes:
      compiled: number of programs that were not in the folder.
      loaded: number of those that were.
    """

    def __init__(self) -> None:
        self.compiled = self.loaded = 0

    def __enter__(self) -> ProgramCount:
        jax.monitoring.register_event_listener(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_listener(self._count)

    def _count(self, event: str, **_: Any) -> None:
        self.compiled += event == "/jax/compilation_cache/cache_misses"
        self.loaded += event == "/jax/compilation_cache/cache_hits"


def _remove_incomplete(folder: Path) -> None:
    """Removes programs that a killed process has not written to the end.

    JAX 0.10 and 0.11 write a program, then the time of its last use. A program without a time would
    make every later write fail, with a warning for each program.
    """
    with contextlib.suppress(OSError):  # JAX says so when it cannot use the folder
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink(missing_ok=True)
