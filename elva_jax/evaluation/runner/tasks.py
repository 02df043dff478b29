"""Benchmarks by name, and where their files are."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.benchmarks.registry import find
from elva_jax.utils.numbers import shown


def resolve(tasks: Sequence[str | Benchmark]) -> tuple[Benchmark, ...]:
    """The benchmarks, those given by name from the table.

    Raises:
      ConfigError: an unknown name, with the nearest one; or none.
    """
    if not tasks:
        return find([])
    found: dict[str, Benchmark] = {}
    for task in tasks:
        for benchmark in find([task]) if isinstance(task, str) else (task,):
            found[benchmark.name] = benchmark
    return tuple(found.values())


def read_questions(
    benchmark: Benchmark, data_root: Path, *, follow_links: bool = False
) -> list[Question]:
    """The questions of a benchmark from its folder.

    Args:
      benchmark: the benchmark.
      data_root: the folder that holds one folder per benchmark, or the benchmark's own.
      follow_links: whether links in the benchmark's folder may lead out of it and of `data_root`.

    Raises:
      DataError: its files are missing or damaged, or it has no questions, or a file of annotations
        is such a link. A medium that is one is a problem of its questions.
    """
    if benchmark.root is not None:
        return _checked(benchmark, benchmark.read(benchmark.root, follow_links=follow_links))
    read = partial(benchmark.read, around=data_root, follow_links=follow_links)
    *tried, last = _roots(benchmark.name, data_root)
    for root in tried:
        with contextlib.suppress(DataError):
            return _checked(benchmark, read(root))
    return _checked(benchmark, read(last))


def _roots(name: str, data_root: Path) -> list[Path]:
    """The folders that may be a benchmark's, the likeliest first.

    A variant such as videomme_subtitles has its files in the folder videomme. Where that folder has
    tables alone, it may be a part of the benchmark's own folder, as it comes from the hub.
    """
    words = name.split("_")
    for count in range(len(words), 0, -1):
        folder = data_root / "_".join(words[:count])
        if folder.is_dir():
            tables = all(path.suffix == ".parquet" for path in folder.iterdir())
            return [data_root, folder] if tables else [folder]
    return [data_root]


def _checked(benchmark: Benchmark, questions: Sequence[Question]) -> list[Question]:
    if not questions:
        raise DataError(f"{benchmark.name}: has no questions; check its files")
    keys = Counter(question.key for question in questions)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise DataError(f"{benchmark.name}: two questions have the key '{shown(twice[0])}'")
    return list(questions)
