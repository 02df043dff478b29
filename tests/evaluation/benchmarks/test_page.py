"""Tests of docs/benchmarks.md: its table is that of the registry, and its example works.

`python tests/evaluation/benchmarks/test_page.py --write` makes the table.
"""

import math
import re
import sys
from pathlib import Path

from elva_jax.evaluation.benchmarks.base import Response
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"
BEGIN = "<!-- benchmarks: made from elva_jax/evaluation/benchmarks/registry.py -->"
END = "<!-- end of benchmarks -->"


def table() -> str:
    lines = [
        "| Name | Benchmark | Files below the root | Score | What it is |",
        "|---|---|---|---|---|",
    ]
    for benchmark in BENCHMARKS.values():
        main = benchmark.score([]).main
        scale = f"{main.name}, 0 to {main.maximum:g}"
        files = benchmark.files.replace("*", r"\*")
        cells = (f"`{benchmark.name}`", benchmark.title, files, scale, benchmark.scoring)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table of today."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def test_the_table_is_that_of_the_registry():
    text = PAGE.read_text()
    assert page(text) == text, "run: python tests/evaluation/benchmarks/test_page.py --write"
    for benchmark in BENCHMARKS.values():
        assert all((benchmark.title, benchmark.files, benchmark.scoring)), benchmark.name
        main = benchmark.score([]).main
        assert (math.isnan(main.value), main.count) == (True, 0), benchmark.name


def test_the_example_of_a_benchmark_works(tmp_path):
    module, test = re.findall(r"```python\n(.+?)```", PAGE.read_text(), re.DOTALL)
    names = {"Response": Response, "root": tmp_path}
    exec(module, names)
    exec(test, names)
    assert names["question"].media[0].source == str(tmp_path / "videos" / "v.mp4")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(page(PAGE.read_text()))
