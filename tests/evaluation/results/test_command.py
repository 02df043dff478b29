"""`elva evaluate --compare`, and the files that a run of benchmarks writes."""

import dataclasses
import json

import pytest

from elva_jax import cli
from elva_jax.commands import evaluate_tasks, many
from elva_jax.evaluation.results import files


@pytest.fixture
def two_runs(run, tmp_path):
    """The files of two runs; the second one has other settings and lacks a benchmark."""
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    files.save(run, first)
    files.save([dataclasses.replace(run[0], settings={**run[0].settings, "frames": 64})], second)
    return first, second


def test_compare(two_runs, tmp_path, capsys):
    first, second = two_runs
    out = tmp_path / "difference.json"
    assert cli.main(["evaluate", "--compare", str(first), str(second), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "frames: A 8, B 64" in text
    assert f"only in {first}: gqa" in text.replace("\n", " ")
    content = json.loads(out.read_text())
    assert [c["way"] for c in content["comparisons"]] == ["generated", "likelihood"]
    assert content["comparisons"][0]["differences"][0]["p"] == 1.0


def test_show_writes_every_file_again(run, tmp_path, capsys):
    path = files.save(run, tmp_path / "run.json")
    names = {"--json": "again.json", "--csv": "x.csv", "--html": "x.html", "--figure": "x.png"}
    options = [text for key, name in names.items() for text in (key, str(tmp_path / name))]
    assert cli.main(["evaluate", "--show", str(path), "--html-frames", "1", *options]) == 0
    out, err = capsys.readouterr()
    assert "Video-MME by duration" in out
    assert "the page has no frames: --show reads media only below --data-root" in err
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert all((tmp_path / name).stat().st_size > 1000 for name in names.values())


def test_compare_own_questions_by_their_own_score(run, tmp_path, capsys):
    path = tmp_path / "own.json"
    files.save([dataclasses.replace(run[1], benchmark="own_pets")], path)
    assert cli.main(["evaluate", "--compare", str(path), str(path)]) == 0
    text = capsys.readouterr().out
    assert "exact match" in text  # not the mean of the credits
    assert "mean credit" not in text
    assert "all settings are the same" in text


def test_a_foreign_file_without_what_the_score_needs_is_one_line(run, tmp_path, capsys):
    path = files.save([dataclasses.replace(run[0], benchmark="mme")], tmp_path / "mme.json")
    assert cli.main(["evaluate", "--compare", str(path), str(path)]) == 1
    message = capsys.readouterr().err
    assert "questions such as 'q0' lack what their benchmark's scores need (KeyError" in message
    assert message.count("\n") == 1


def test_texts_that_are_no_unicode_are_written(run, tmp_path, capsys):
    path = tmp_path / "a.json"
    settings = {**run[0].settings, "judge_failures": {"\ud800": 1}}
    files.save([dataclasses.replace(run[0], settings=settings)], path)
    out = tmp_path / "difference.json"
    other = files.save(run, tmp_path / "b.json")
    assert cli.main(["evaluate", "--compare", str(path), str(other), "--json", str(out)]) == 0
    assert ["judge_failures.\ud800", "1", ""] in json.loads(out.read_text())["comparisons"][0][
        "settings"
    ]


def test_reasons_from_files_cannot_command_the_terminal(run, capsys):
    grade = run[0].grades["generated"][0]
    response = dataclasses.replace(grade.response, error="\x1b[2Jone\ntwo")
    grades = (dataclasses.replace(grade, response=response),)
    one = dataclasses.replace(run[0], grades={"generated": grades})
    assert evaluate_tasks._status([one], say=True) == many.INCOMPLETE
    message = capsys.readouterr().err
    assert message.endswith(f"no score: question {grade.response.question.key}: \ufffd[2Jone two\n")
    assert message.count("\n") == 1


def test_compare_refuses_other_files(two_runs, run, tmp_path, capsys):
    first, second = two_runs
    files.save(run[1:], second)
    files.save(run[:1], first)
    assert cli.main(["evaluate", "--compare", str(first), str(second)]) == 1
    message = capsys.readouterr().err
    assert "no benchmark in common" in message
    assert message.count("\n") == 1
    (tmp_path / "old.json").write_text('{"families": {}, "macro": {}}')
    assert cli.main(["evaluate", "--compare", str(first), str(tmp_path / "old.json")]) == 1
    assert "has no predictions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "required: --checkpoint"),
        (["--checkpoint", "runs/tiny", "--html", "x.html"], "--html needs --tasks"),
        (["--checkpoint", "runs/tiny", "--csv", "x.csv"], "--csv needs --tasks"),
    ],
)
def test_options_without_what_they_need(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
