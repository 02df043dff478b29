"""Tests of files for the servers of benchmarks: from clips to the file, by the command line."""

import json

from elva_jax import testing
from elva_jax.cli import main
from elva_jax.evaluation.benchmarks.base import Evaluation, Response
from elva_jax.evaluation.benchmarks.choice import choice_question
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS
from elva_jax.evaluation.results import submission


def test_all_answers_are_in_the_file_for_the_server(tmp_path, capsys):
    testing.tiny_model().save_pretrained(tmp_path / "tiny")
    root = tmp_path / "egoschema"
    (root / "videos").mkdir(parents=True)
    testing.write_video(root / "videos" / "u0.mp4", testing.tiny_video())
    options = {f"option {k}": f"thing {k}" for k in range(5)}
    rows = [{"q_uid": f"u{k}", "question": "What?", **options} for k in range(2)]
    (root / "questions.json").write_text(json.dumps(rows))
    (root / "subset_answers.json").write_text('{"u0": 1}')
    words = [f"--checkpoint={tmp_path / 'tiny'}", "--tasks=egoschema", f"--data-root={tmp_path}"]
    words += ["--frames=1", "--answers=letter", f"--output={tmp_path / 'out'}"]
    assert main(["evaluate", *words]) == 3  # the second video is missing
    submitted = json.loads((tmp_path / "out" / "egoschema_submission.json").read_text())
    assert list(submitted) == ["u0", "u1"]
    assert submitted["u0"] in range(5)
    assert submitted["u1"] == -1
    assert "egoschema_submission.json" in capsys.readouterr().err


def test_a_server_may_take_a_list(tmp_path):
    question = choice_question("T0", [], "?", ["x", "y"], None, categories={"type": "ego"})
    benchmark = BENCHMARKS["mlvu_test"]
    grade = benchmark.grade(Response(question=question, text="B"))
    evaluation = Evaluation(
        benchmark="mlvu_test",
        title=benchmark.title,
        scores={"generated": benchmark.score([grade])},
        grades={"generated": (grade,)},
        settings={},
    )
    (path,) = submission.save([evaluation], tmp_path)
    expected = [{"question_id": "T0", "question_type": "ego", "option": "B"}]
    assert json.loads(path.read_text()) == expected
