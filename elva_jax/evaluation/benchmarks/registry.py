"""The table of benchmarks. A new one is a module with a `Benchmark`, and a line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from elva_jax.config.check import nearest
from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks import (
    cinepile,
    egoschema,
    gqa,
    mlvu,
    mmbench,
    mme,
    mvbench,
    nextqa,
    open_video,
    perceptiontest,
    pope,
    seed_image,
    tempcompass,
    video_chatgpt,
    videomme,
)
from elva_jax.evaluation.benchmarks.base import Benchmark

_ROWS = (
    videomme.BENCHMARK,
    videomme.WITH_SUBTITLES,
    mvbench.BENCHMARK,
    mlvu.BENCHMARK,
    mlvu.TEST,
    egoschema.BENCHMARK,
    egoschema.SUBSET,
    cinepile.BENCHMARK,
    nextqa.BENCHMARK,
    perceptiontest.BENCHMARK,
    *tempcompass.BENCHMARKS,
    *open_video.BENCHMARKS,
    video_chatgpt.BENCHMARK,
    gqa.BENCHMARK,
    seed_image.BENCHMARK,
    mme.BENCHMARK,
    mmbench.BENCHMARK,
    pope.BENCHMARK,
)
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ROWS}
GROUPS: Mapping[str, tuple[str, ...]] = {  # names that stand for several benchmarks
    "tempcompass": tuple(benchmark.name for benchmark in tempcompass.BENCHMARKS)
}


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
