"""The notebook's code, cell by cell, on a few clips and a few steps: from data to answers.

Of the curriculum it trains the first and the last stage. `launch/quickstart.sh --smoke`, which CI
runs before the tests, trains all four stages of the same config.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
GIVEN = "[f\"--config.data_dir={WORK / 'data'}\"]"
# TensorBoard's writer would import PyTorch, which takes seconds.
MORE = ("--config.curriculum=('teacher', 'sft')", "--config.log.tensorboard=False")
SHORTER = ", ".join([GIVEN[:-1], *(f'"{word}"' for word in MORE)]) + "]"


@pytest.mark.slow
def test_the_notebook_runs_from_data_to_answers(tmp_path):
    cells = json.loads((REPO / "notebooks/tiny_elva.ipynb").read_text())["cells"]
    code = "\n".join(
        "".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code"
    )
    assert code.count(GIVEN) == 1
    code = code.replace(GIVEN, SHORTER)
    script = tmp_path / "notebook.py"
    script.write_text(
        'if __name__ == "__main__":\n'
        + "".join(f"    {line}\n" if line else "\n" for line in code.splitlines())
    )
    env = os.environ | {
        "ELVA_NOTEBOOK_DIR": str(tmp_path / "work"),
        "ELVA_NOTEBOOK_VARIANT": "smoke",
    }
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| truth:" in done.stdout
    assert "the largest token stands for patches of the frames [" in done.stdout
    assert (tmp_path / "work/run/curves.png").stat().st_size > 1000
    assert not any(cell.get("outputs") for cell in cells), "commit the notebook without outputs"
