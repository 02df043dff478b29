"""The commands in guides exist."""

import re
import shlex
from pathlib import Path

import pytest

from elva_jax import cli
from elva_jax.config.load import load
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS, GROUPS

REPO = Path(__file__).parents[2]
# With the fewest commands that each has.
GUIDES = {
    "guides/evaluation": 4,
    "guides/merv": 7,
    "guides/studies": 3,
    "guides/video_teacher": 5,
    "small": 5,
}


def commands(guide):
    """The `elva` commands in the guide's blocks of shell."""
    text = (REPO / "docs" / f"{guide}.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("elva ")]


@pytest.mark.parametrize("guide", GUIDES)
def test_there_are_commands(guide):
    assert len(commands(guide)) >= GUIDES[guide]


@pytest.mark.parametrize("line", [line for guide in GUIDES for line in commands(guide)])
def test_options_exist(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    args, rest = cli._parser(words[0]).parse_known_args(words)
    assert set(getattr(args, "tasks", None) or ()) <= {*BENCHMARKS, *GROUPS}
    config = getattr(args, "config", None)
    if config is None:
        assert rest == []
    else:
        load(str(REPO / config), rest)  # refuses keys that there are not
