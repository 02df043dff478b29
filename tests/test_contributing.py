"""The diffs of CONTRIBUTING.md apply to the code as it is."""

import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
TEXT = (REPO / "CONTRIBUTING.md").read_text()
EXAMPLES = re.findall(r"^### (.+?)\n.*?^```diff\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_there_is_an_example_of_each_kind():
    kinds = [name.split()[-1] for name, _ in EXAMPLES]
    assert kinds == ["reader", "policy", "loss", "task", "tower", "benchmark"]


@pytest.mark.parametrize(("name", "diff"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_it_applies_and_has_a_test(name, diff):
    command = ["git", "apply", "--check", "--verbose", "-"]
    done = subprocess.run(command, input=diff, text=True, capture_output=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert "+def test_" in diff
