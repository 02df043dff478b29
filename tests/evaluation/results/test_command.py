"""`elva evaluate --compare`, and the files that a run of benchmarks writes."""

import argparse
import dataclasses
import json

import pytest

from elva_jax import cli
from elva_jax.commands import evaluate_results
from elva_jax.evaluation.benchmarks import registry
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


def test_a_run_gets_intervals_from_its_benchmark(run, tmp_path, capsys):
    out = tmp_path / "run.json"
    args = argparse.Namespace(json=out, csv=None, html=None, figure=None)
    evaluate_results.write_results(run[:1], args, [registry.BENCHMARKS["videomme"]])
    assert "bootstrap over media" in capsys.readouterr().out
    scores = files.load(out)[0].scores["generated"]
    assert scores.main.low < scores.main.value < scores.main.high
    assert scores.categories["duration"]["short"].low < scores.main.value


def test_show_writes_every_file_again(run, tmp_path, capsys):
    path = files.save(run, tmp_path / "run.json")
    names = {"--json": "again.json", "--csv": "x.csv", "--html": "x.html", "--figure": "x.png"}
    options = [text for key, name in names.items() for text in (key, str(tmp_path / name))]
    assert cli.main(["evaluate", "--show", str(path), "--html-frames", "1", *options]) == 0
    assert "Video-MME by duration" in capsys.readouterr().out
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert all((tmp_path / name).stat().st_size > 1000 for name in names.values())


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
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate"])
    assert stop.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err
