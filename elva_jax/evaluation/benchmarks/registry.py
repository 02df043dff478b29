"""The table of benchmarks. A new one is a module with a `Benchmark`, and a line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from elva_jax.config.check import nearest
from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks import videomme
from elva_jax.evaluation.benchmarks.base import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (videomme.BENCHMARK, videomme.WITH_SUBTITLES)
}
GROUPS: Mapping[str, tuple[str, ...]] = {}  # names that stand for several benchmarks


def find(names: Iterable[str]) -> tuple[Benchmark, ...]:
    """The benchmarks with these names, in this order, each once; a group's name gives all of it.

    Raises:
      ConfigError: a name is unknown, or there is none.
    """
    found: dict[str, Benchmark] = {}
    for name in names:
        for member in GROUPS.get(name, (name,)):
            if member not in BENCHMARKS:
                known = (*BENCHMARKS, *GROUPS)
                raise ConfigError(
                    f"--tasks {name}: no such benchmark{nearest(name, known)}"
                    f" (there are {', '.join(known)})"
                )
            found[member] = BENCHMARKS[member]
    if not found:
        raise ConfigError("--tasks: names no benchmark; for example --tasks videomme,mvbench")
    return tuple(found.values())
