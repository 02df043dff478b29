"""Small annotation files and answers for the tests of benchmarks."""

import json

import pytest

from elva_jax.evaluation.benchmarks.base import Response, scored


def write(path, value):
    """Writes JSON, or a text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return str(path)


def grades(benchmark, questions, texts):
    """The grades of written answers; an exception stands for a medium that cannot be read."""
    responses = [
        Response(question=question, error=str(text))
        if isinstance(text, Exception)
        else Response(question=question, text=text)
        for question, text in zip(questions, texts, strict=True)
    ]
    return [benchmark.grade(response) for response in responses]


def score(benchmark, questions, texts):
    return scored(benchmark.score, grades(benchmark, questions, texts))


def values(metrics):
    """Metrics by name, rounded to two decimals."""
    return {name: round(metric.value, 2) for name, metric in metrics.items()}


def parquet(path, rows):
    """Writes rows as the hub does."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
