"""Tests of studies without training: what is run, what is refused, and the statistics."""

import json
from pathlib import Path

import numpy as np
import pytest

from elva_jax.config.load import load
from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.study import Study, Variant, describe, report
from elva_jax.tools.study.jobs import COST, FAILED, JOB, RESULT, jobs_of
from elva_jax.tools.study.pages import put_tables
from elva_jax.tools.study.reuse import take_training
from elva_jax.tools.study.statistics import MACRO, Answers, accuracies, differences
from elva_jax.tools.study.summary import summarize

ROOT = Path(__file__).parents[3]
CONFIG = f"{ROOT}/configs/tiny.py:smoke"


def study(**more):
    variants = {
        "first": Variant(overrides={"curriculum": ("teacher", "image")}, measured=False),
        "on": Variant(after="first", overrides={"curriculum": ("sft",)}, paper=44.0),
        "off": Variant(of="on", evaluate={"merging": False}, paper=46.5),
    }
    return Study(**({"config": CONFIG, "variants": variants, "paper": "Table 9"} | more))


def test_jobs(tmp_path):
    """Seed by seed; a variant after another starts from its run and from its teacher."""
    jobs = jobs_of(study(), tmp_path, 2)
    assert [job.label for job in jobs[:4]] == [
        "first, seed 0", "on, seed 0", "off, seed 0", "first, seed 1",
    ]  # fmt: skip
    first, on, off = jobs[3:]
    assert (first.needs, on.needs, off.needs) == (None, first.folder, on.folder)
    assert (off.run, off.command) == (tmp_path / "on" / "seed-1" / "run", ())
    config = load(on.command[1], on.command[2:])
    assert (config.seed, config.curriculum) == (1, ("sft",))
    assert config.init_from == str(first.run)
    assert config.teacher.init_from == str(first.run / "teacher")
    assert (first.evaluate, on.evaluate, off.evaluate) == (None, {}, {"merging": False})


def test_another_job_in_its_folder_is_refused(tmp_path):
    """But the same one elsewhere is not another."""
    for out in (tmp_path / "a", tmp_path / "b"):
        jobs = jobs_of(study(), out, 1)
        for job in jobs:
            job.folder.mkdir(parents=True)
            (job.folder / JOB).write_text(json.dumps(job.identity))
        assert jobs_of(study(), out, 1) == jobs
        assert [job.identity for job in jobs] == [
            job.identity for job in jobs_of(study(), tmp_path, 1)
        ]
    (tmp_path / "b" / "on" / "seed-0" / JOB).write_text(json.dumps(jobs[0].identity))
    with pytest.raises(ConfigError, match=r"on.seed-0: was another job: .*curriculum was") as error:
        jobs_of(study(), tmp_path / "b", 1)
    assert len(str(error.value)) < 800


def finished(job):
    """The files of a job that is done, with one in its run."""
    (job.run / "video").mkdir(parents=True)
    (job.run / "video" / "weights").write_text(job.label)
    (job.run / ".owner").write_text("{}")
    (job.folder / JOB).write_text(json.dumps(job.identity))
    (job.folder / RESULT).write_text("{}")
    parts = [{"part": part, "seconds": 2.0, "cpu_seconds": 1.0} for part in ("train", "measure")]
    (job.folder / COST).write_text(json.dumps({"parts": parts}))


def test_equal_trainings_of_another_study_are_taken(tmp_path):
    """Under any name; but not of another seed or config, not unfinished, not over a run."""
    old = jobs_of(study(), tmp_path / "a", 2)
    for job in (old[0], old[1], old[4]):
        finished(job)
    more = {"first": Variant(overrides={"curriculum": ("teacher", "image")}, measured=False)}
    more["again"] = Variant(after="first", overrides={"curriculum": ("sft",)}, measured=False)
    more["other"] = Variant(
        after="first", overrides={"curriculum": ("sft",), "stages.sft.merging": False}
    )
    jobs = jobs_of(study(variants=more), tmp_path / "b", 3)
    for job in jobs:
        job.folder.mkdir(parents=True)
    found = {job.label: take_training(job, [tmp_path / "gone", tmp_path / "a"]) for job in jobs}
    assert {label: folder for label, folder in found.items() if folder} == {
        "first, seed 0": old[0].folder,
        "again, seed 0": old[1].folder,
        "again, seed 1": old[4].folder,
    }
    again = jobs[1]
    assert (again.run / "video" / "weights").read_text() == "on, seed 0"
    assert not (again.run / ".owner").exists()
    parts = json.loads((again.folder / COST).read_text())["parts"]
    assert [part["part"] for part in parts] == ["train"]
    assert take_training(again, [tmp_path / "a"]) is None
    (old[0].folder / RESULT).unlink()
    assert take_training(jobs_of(study(), tmp_path / "c", 1)[0], [tmp_path / "a"]) is None


WRONG = {
    "a path": ({"../x": Variant()}, "variant '../x'"),
    "after nobody": ({"a": Variant(after="b"), "b": Variant()}, "after='b' is no variant before"),
    "of what is measured only": (
        {"a": Variant(), "b": Variant(of="a"), "c": Variant(of="b")}, "of='b' must name",
    ),
    "of with overrides": (
        {"a": Variant(), "b": Variant(of="a", overrides={"seed": 1})}, "would change nothing",
    ),
    "a setting": ({"a": Variant(evaluate={"merge": 1})}, "no 'merge'; did you mean merging"),
    "nothing measured": ({"a": Variant(measured=False)}, "none is measured"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_studies_that_cannot_work(name):
    variants, words = WRONG[name]
    with pytest.raises(ConfigError, match=words):
        study(variants=variants)


def test_files_of_studies(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in describe.known():
        assert jobs_of(describe.load_study(describe.find(name)), tmp_path, 1)
    with pytest.raises(ConfigError, match="'mergng' is unknown; did you mean merging"):
        describe.find("mergng")
    for text, words in {
        "1/0": "ZeroDivisionError", "x = 1": "no function get_study",
        "def get_study():\n    return 3": "returned int",
    }.items():  # fmt: skip
        (tmp_path / "own.py").write_text(text)
        with pytest.raises(ConfigError, match=rf"own\.py: .*{words}"):
            describe.load_study(tmp_path / "own.py")


def answers(rng, variants):
    """40 videos with up to four questions of three families; accuracies by variant and seed."""
    video = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    return Answers(
        families=("a", "b", "c"),
        family=rng.integers(0, 3, len(video)),
        video=video,
        credit={
            name: {s: (rng.random(len(video)) < p).astype(float) for s, p in enumerate(shares)}
            for name, shares in variants.items()
        },
    )


def test_means_equal_a_plain_reading():
    rng = np.random.default_rng(1)
    found = answers(rng, {"x": [0.4, 0.8, 0.6], "y": [0.5, 0.5]})
    by_seed = {}
    for seed, credit in found.credit["x"].items():
        families = [credit[found.family == f].mean() for f in range(3)]
        by_seed[seed] = 100 * np.mean(families)
    macro = accuracies(found, "x")[MACRO]
    assert macro.by_seed == pytest.approx(by_seed)
    assert macro.value == pytest.approx(np.mean(list(by_seed.values())))
    assert macro.low < macro.value < macro.high
    gap = differences(found, "y", "x")[MACRO]
    assert sorted(gap.by_seed) == [0, 1]
    assert gap.by_seed[1] == pytest.approx(accuracies(found, "y")[MACRO].by_seed[1] - by_seed[1])


def test_equal_runs_differ_by_nothing():
    """Hard videos and lucky seeds cancel out."""
    found = answers(np.random.default_rng(2), {"x": [0.1, 0.9]})
    same = Answers(**(vars(found) | {"credit": {"x": found.credit["x"], "y": found.credit["x"]}}))
    gap = differences(same, "y", "x")[MACRO]
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)
    macro = accuracies(same, "x")[MACRO]
    assert macro.high - macro.low > 40


def test_intervals_hold_the_truth():
    """Of 95 % intervals, 95 % hold the accuracy that answers are drawn with.

    Within four standard errors of 100 draws, for one question per video and one seed.
    """
    rng, inside = np.random.default_rng(3), 0
    family, video = np.zeros(120, int), np.arange(120)
    for _ in range(100):
        credit = {"x": {0: (rng.random(120) < 0.7).astype(float)}}
        drawn = Answers(families=("a",), family=family, video=video, credit=credit)
        macro = accuracies(drawn, "x")[MACRO]
        inside += macro.low <= 70 <= macro.high
    assert 0.95 - 4 * 0.022 < inside / 100 <= 1


def write_results(out, credits):
    """Results as the queue writes them, of two questions about two videos."""
    for job in jobs_of(study(), out, 2):
        job.folder.mkdir(parents=True)
        if job.evaluate is None:
            continue
        items = [
            {"video": f"v{i}", "family": "color", "question": "?",
             "credit": {"open": credit, "likelihood": 1.0}}
            for i, credit in enumerate(credits[job.variant][job.seed])
        ]  # fmt: skip
        result = {
            "items": items, "seconds": 2.0, "tokens": {"visual_kept": 0.5}, "parameters": 1000,
            "data": {"name": "moving_shapes/easy", "split": "test", "videos": 2},
            "versions": {"jax": "0.11", "device": "cpu"}, "cost": [],
            "machine": {"processor": "a chip", "cores": 2, "commit": "abc"},
        }  # fmt: skip
        (job.folder / RESULT).write_text(json.dumps(result))
    return jobs_of(study(), out, 2)


def test_report(tmp_path):
    jobs = write_results(
        tmp_path, {"on": [[1.0, 0.0], [1.0, 1.0]], "off": [[1.0, 1.0], [1.0, 1.0]]}
    )
    (jobs[0].folder / FAILED).write_text("{}")
    summary = summarize("mine", study(), jobs)
    page = report.markdown(summary, "report.png")
    on, off = (next(row for row in page.splitlines() if f"| {n} |" in row) for n in ("on", "off"))
    assert on.startswith("| on | 75.0 (")
    assert "| 50.0 to 100.0 | 2 | – | – | 44 |" in on
    assert off.startswith("| off | 100.0 (100.0 to 100.0) | 100.0 to 100.0 | 2 | +25.0 (")
    assert off.endswith("| 1 of 2 | 46.5 | +2.5 |")
    assert "first, seed 0" in page.split("Failed: ")[1]
    text = "# README\n<!-- study: mine -->\nold\n<!-- end of study -->\nrest\n"
    (tmp_path / "README.md").write_text(text)
    for _ in range(2):
        put_tables(tmp_path / "README.md", summary)
        written = (tmp_path / "README.md").read_text()
        assert "| off | 100.0" in written
        assert "old" not in written
        assert written.endswith("<!-- end of study -->\nrest\n")
    with pytest.raises(ConfigError, match="has no <!-- study: other --> or "):
        put_tables(tmp_path / "README.md", summary | {"name": "other"})


def test_report_without_written_answers(tmp_path):
    jobs = write_results(tmp_path, {"on": [[1.0], [1.0]], "off": [[1.0], [1.0]]})
    for path in (job.folder / RESULT for job in jobs if job.done):
        result = json.loads(path.read_text())
        for item in result["items"]:
            del item["credit"]["open"]
        path.write_text(json.dumps(result))
    page = report.markdown(summarize("mine", study(), jobs))
    assert "| on | 100.0" in page
    assert "written" not in page


def test_results_of_different_questions_are_refused(tmp_path):
    jobs = write_results(tmp_path, {"on": [[1.0], [1.0, 1.0]], "off": [[1.0, 1.0], [1.0, 1.0]]})
    with pytest.raises(DataError, match="different questions"):
        summarize("mine", study(), jobs)
