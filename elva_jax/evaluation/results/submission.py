"""Files for the servers of benchmarks whose answers are not public."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elva_jax.evaluation.benchmarks.base import Evaluation
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS
from elva_jax.utils.json import save_json


def save(evaluations: Sequence[Evaluation], folder: str | Path) -> list[Path]:
    """Writes `NAME_submission.json` for each benchmark with a server, and returns the paths.

    The answers are those of the first way of answering, the headline.

    Raises:
      ConfigError: a file cannot be written.
    """
    written = []
    for evaluation in evaluations:
        benchmark = BENCHMARKS.get(evaluation.benchmark)
        if benchmark is not None and benchmark.submission is not None:
            content = benchmark.submission(next(iter(evaluation.grades.values())))
            path = Path(folder) / f"{evaluation.benchmark}_submission.json"
            written.append(save_json(content, path))
    return written
