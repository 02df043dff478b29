"""The commands in docs/guides/evaluation.md exist."""

import re
import shlex
from pathlib import Path

import pytest

from elva_jax import cli
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS, GROUPS

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md"


def commands():
    """The `elva` commands in the guide's blocks of shell."""
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("elva ")]


def test_there_are_commands():
    assert len(commands()) >= 4


@pytest.mark.parametrize("line", commands())
def test_options_exist(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    args, rest = cli._parser(words[0]).parse_known_args(words)
    assert rest == []
    assert set(args.tasks or ()) <= {*BENCHMARKS, *GROUPS}
