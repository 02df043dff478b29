"""docs/guides/evaluation.md: its commands exist, and its table is the registry's.

`python tests/evaluation/test_guide.py --write` makes the table.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest

from elva_jax import cli
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS, GROUPS

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md"
BEGIN = "<!-- benchmarks: made from elva_jax/evaluation/benchmarks/registry.py -->\n"
END = "<!-- end of benchmarks -->"


def commands():
    """The `elva` commands in the guide's blocks of shell."""
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("elva ")]


def guide():
    """The guide with the table of today."""
    rows = ["| `--tasks` | Benchmark | Files in its folder |", "|---|---|---|"]
    rows += [f"| `{b.name}` | {b.title} | {b.files} |" for b in BENCHMARKS.values()]
    rows += [f"| `{name}` | all of {', '.join(of)} | |" for name, of in GROUPS.items()]
    before, rest = GUIDE.read_text().split(BEGIN)
    return before + BEGIN + "\n".join(rows) + "\n" + END + rest.split(END)[1]


def test_there_are_commands():
    assert len(commands()) >= 4


@pytest.mark.parametrize("line", commands())
def test_options_exist(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    args, rest = cli._parser(words[0]).parse_known_args(words)
    assert rest == []
    assert set(args.tasks or ()) <= {*BENCHMARKS, *GROUPS}


def test_the_table_is_that_of_the_registry():
    assert guide() == GUIDE.read_text(), "run python tests/evaluation/test_guide.py --write"


if __name__ == "__main__" and "--write" in sys.argv:
    GUIDE.write_text(guide())
