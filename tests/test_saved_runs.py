"""A run of older code loads, answers and resumes as it did then (tests/fixtures/README.md)."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from elva_jax.checkpoints.restore import load_run
from elva_jax.cli import main
from elva_jax.inference.load import load
from elva_jax.training.metric_writers import read_metrics
from elva_jax.utils.trees import flatten_paths

ARCHIVE = Path(__file__).parent / "fixtures" / "run_of_3e843db.tar.xz"
CONFIG = Path(__file__).parent / "training" / "tiny_run.py"
# Another processor rounds differently; on the processor that wrote the run all numbers are equal.
TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A fresh copy of the run as the working directory, and what was expected of it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text())


def test_it_answers_and_scores_as_before(saved):
    model = load("run")
    for index, question in enumerate(saved["questions"]):
        clip = f"clips/{index}.mp4"
        for merging, answer in question["answers"].items():
            options = {"max_new_tokens": 12, "merging": merging == "True"}
            assert model.answer(clip, question["question"], **options) == answer
        scores = model.score(clip, question["choice"], question["options"])
        np.testing.assert_allclose(
            [(score.total, score.tokens) for score in scores], question["scores"], **TOLERANCE
        )


def test_it_is_evaluated_as_before(saved):
    words = ["--data-dir", "data", "--limit", "4", "--json", "evaluation.json"]
    assert main(["evaluate", "--checkpoint", "run", *words]) == 0
    now, then = json.loads(Path("evaluation.json").read_text()), saved["evaluate"]
    assert now.keys() == then.keys()
    for part in ("families", "macro", "answers"):
        assert now[part] == then[part], part


def test_it_resumes_and_ends_as_the_uninterrupted_run(saved):
    settings = {
        "data_dir": "data",
        "stages.sft.steps": 8,
        "stages.video.steps": 4,
        "checkpoint.keep": 0,
        "log.tensorboard": False,
    }
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    curriculum = f"{CONFIG}:teacher,video,sft"
    assert main(["train", "--config", curriculum, "--workdir", "run", *overrides]) == 0
    reported = read_metrics(Path("run/sft"))
    assert [line["step"] for line in reported] == list(range(1, 9))
    for now, then in zip(reported[4:], saved["metrics"], strict=True):
        assert then.keys() <= now.keys()
        np.testing.assert_allclose([now[name] for name in then], list(then.values()), **TOLERANCE)
    params = flatten_paths(load_run("run").params)
    assert params.keys() == saved["end"].keys()
    for name, (total, size) in saved["end"].items():
        value = np.asarray(params[name], np.float64)
        assert abs(value.sum() - total) <= 1e-4 * size, name
        np.testing.assert_allclose(np.abs(value).sum(), size, rtol=1e-4, err_msg=name)
