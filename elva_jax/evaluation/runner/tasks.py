"""Benchmarks by name, and where their files are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from elva_jax.data.readers import paths
from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.benchmarks.registry import find
from elva_jax.utils.failures import repr_path
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
      DataError: its files are missing or damaged, or it has no questions, or a medium is such a
        link.
    """
    *tried, last = _roots(benchmark.name, data_root)
    for root in tried:
        try:
            questions = _checked(benchmark, root)
            break
        except DataError:
            continue
    else:
        root, questions = last, _checked(benchmark, last)
    if not follow_links:
        _check_links(benchmark.name, questions, root.resolve(), data_root.resolve())
    return questions


def _check_links(name: str, questions: Sequence[Question], root: Path, data_root: Path) -> None:
    """Refuses media below `root` whose links lead out of it, of its hub's blobs and `data_root`."""
    sources = (medium.source for question in questions for medium in question.media)
    listed = ([each] if isinstance(each, str) else each for each in dict.fromkeys(sources))
    for path in (file for files in listed if not isinstance(files, bytes) for file in files):
        try:
            refused = Path(path).is_relative_to(root) and not paths.lies_below(
                path, (data_root, *paths.places(root))
            )
        except (OSError, RuntimeError, ValueError):
            continue  # reading it says why it cannot be read
        if refused:
            raise DataError(
                f"{name}: {repr_path(path)} is a link that leads out of {repr_path(data_root)}, to"
                f" {repr_path(Path(path).resolve())}; copy the file, or give --follow-links"
                " (follow_links=True) if the links are your own"
            )


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


def _checked(benchmark: Benchmark, root: Path) -> list[Question]:
    questions = list(benchmark.read(root))
    if not questions:
        raise DataError(f"{benchmark.name}: has no questions; check {root}")
    keys = Counter(question.key for question in questions)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise DataError(f"{benchmark.name}: two questions have the key '{shown(twice[0])}'")
    return questions
