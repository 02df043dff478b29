"""Stored summaries of studies: the pages that show them, and a run beside their range."""

import json
from pathlib import Path

import pytest

from elva_jax import cli
from elva_jax.tools.study.pages import SHORT, with_tables
from elva_jax.tools.study.stored import load_summary

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "docs/tiny.md", "docs/ablations.md")
LONGEST = "likeliest option, position"


def estimate(*seeds):
    value = sum(seeds) / len(seeds)
    by_seed = {str(seed): number for seed, number in enumerate(seeds)}
    return {"value": value, "low": value - 2, "high": value + 2, "by_seed": by_seed}


@pytest.fixture
def stored(tmp_path):
    """The file of a study of two seeds, and its content."""
    accuracy = {
        "open": {"position": estimate(40.0, 60.0), "macro": estimate(70.0, 74.123456)},
        "likelihood": {"position": estimate(81.0, 83.0), "macro": estimate(100.0, 100.0)},
    }
    variant = {
        "seeds": [0, 1], "accuracy": accuracy, "difference": {}, "visual_kept": 0.63,
        "seconds": 30.0, "training_cpu_seconds": 900.0, "parameters": 1000, "paper": None,
    }  # fmt: skip
    summary = {
        "name": "mine", "question": "How well?", "note": "", "config": "c.py", "baseline": "quick",
        "paper": "", "questions": 10, "videos": 4, "data": "moving_shapes/easy, test",
        "variants": {"quick": variant}, "missing": [], "failed": [], "machines": ["a chip"],
        "commits": ["abc"], "cpu_seconds": 3600.0,
        "floors": {"blind": {"position": estimate(25.0, 27.0), "macro": estimate(24.0, 24.0)}},
    }  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(summary))
    return path, summary


def write_run(path, **changed):
    """A result of `elva evaluate --json` whose figures are inside unless they are `changed`."""
    figures = {"open position": 0.5, "open macro": 0.72, "likelihood position": 0.8} | changed
    figures.setdefault("likelihood macro", 0.99)

    def scores(family):
        columns = ("open", "likelihood")
        return {c: {"accuracy": figures[f"{c} {family}"], "stderr": 0.01} for c in columns}

    result = {"macro": scores("macro"), "families": {"position": scores("position")}}
    path.write_text(json.dumps(result | {"data": {"name": "moving_shapes/easy", "split": "test"}}))
    return path


def test_pages_show_what_is_stored():
    """README's and other pages' tables are those of docs/studies/, to the letter."""
    assert f"{SHORT.format('quickstart')}\n" in (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "docs" / "studies").glob("*.json")):
        summary = load_summary(path)
        assert summary["name"] == path.stem
        for page in PAGES:
            text = (ROOT / page).read_text()
            assert with_tables(text, summary) == text, f"elva study report {path} --write {page}"


def test_one_command_stores_a_study_and_fills_pages(tmp_path, stored):
    source, kept = stored[0], tmp_path / "docs" / "studies" / "mine.json"
    pages = [tmp_path / "README.md", tmp_path / "tiny.md"]
    pages[0].write_text("# A\n<!-- study: mine, short -->\nold\n<!-- end of study -->\nrest\n")
    pages[1].write_text("# B\n<!-- study: mine -->\nold\n<!-- end of study -->\n")
    words = ["study", "report", str(source), "--save", str(kept)]
    assert cli.main([*words, "--write", str(pages[0]), "--write", str(pages[1])]) == 0
    short, full = (page.read_text() for page in pages)
    assert "| quick, written | 2 | 50 (40 to 60) | 72 (70 to 74) |\n" in short
    assert "| *blind (no video)* | 2 | 26 | 24 |\n" in short
    assert short.endswith("processor time on a chip.\n<!-- end of study -->\nrest\n")
    assert "| quick | 72.1 (70.1 to 74.1) | 70.0 to 74.1 | 2 |" in full
    assert "old" not in short + full
    summary = load_summary(kept)
    assert summary["variants"]["quick"]["accuracy"]["open"]["macro"]["by_seed"]["1"] == 74.123
    for page in pages:  # nothing changes from one start to the next
        assert with_tables(page.read_text(), summary) == page.read_text()


def test_a_run_inside_the_range(tmp_path, stored, capsys):
    """Widened by two standard errors: 80 is within two of one point below 81."""
    run = write_run(tmp_path / "test.json")
    assert cli.main(["study", "expected", str(stored[0]), str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("all 4 figures are inside the range of the study's 2 seeds")
    (row,) = (line for line in lines if LONGEST in line)
    (head,) = (line for line in lines if "this run" in line)
    assert row.split()[-5:] == ["80.0", "1.0", "81.0", "to", "83.0"]
    assert head.index("this run") + len("this run") == row.index("80.0") + len("80.0")


def test_figures_outside_the_range_are_named(tmp_path, stored, capsys):
    run = write_run(tmp_path / "test.json", **{"likelihood position": 0.5, "open macro": 0.9})
    assert cli.main(["study", "expected", str(stored[0]), str(run)]) == 3
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("2 of 4 figures are outside the range")
    assert f": written, macro; {LONGEST} (" in out.splitlines()[-1]
    assert sum(line.rstrip().endswith("outside") for line in out.splitlines()) == 2


def damaged(change):
    def write(path, summary):
        change(summary)
        path.write_text(json.dumps(summary))

    return write


BROKEN = {
    "no summary": (lambda path, _: path.unlink(), "mine.json: cannot be opened"),
    "no JSON": (lambda path, _: path.write_text("{"), "mine.json: is not JSON"),
    "another file": (lambda path, _: path.write_text('{"name": "x"}'), "has no question"),
    "no seeds": (
        damaged(lambda s: s["variants"]["quick"]["accuracy"]["open"]["macro"]["by_seed"].clear()),
        "quick.accuracy.open.macro.by_seed is empty",
    ),
    "a word for a number": (
        damaged(lambda s: s["variants"]["quick"].update(seconds="long")), "seconds is 'long'",
    ),
    "no macro": (
        damaged(lambda s: s["variants"]["quick"]["accuracy"]["open"].pop("macro")),
        "quick.accuracy has other columns or families",
    ),
    "no baseline": (damaged(lambda s: s["variants"].clear()), "no finished run of quick"),
    "other data": (damaged(lambda s: s.update(data="x, test")), "the study of x, test"),
    "no result": (lambda path, _: (path.parent / "test.json").unlink(), "test.json: cannot be"),
    "an empty result": (
        lambda path, _: (path.parent / "test.json").write_text("{}"), "of which data it is",
    ),
    "a result of letters alone": (
        lambda path, _: (path.parent / "test.json").write_text(
            '{"data": {"name": "moving_shapes/easy", "split": "test"}}'
        ),
        "has no accuracy of 'position' (written)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_clear_line(tmp_path, stored, capsys, name):
    break_it, words = BROKEN[name]
    run = write_run(tmp_path / "test.json")
    break_it(*stored)
    assert cli.main(["study", "expected", str(stored[0]), str(run)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
