"""Tests of MLVU: a small copy of its files and its worked scores.

`harness` is what lmms-eval 0.7.3 gives for the same answers; it is not asserted against our code.
"""

import math

import pytest
from tests.evaluation.benchmarks.helpers import grades, parquet, score, values, write

from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import mlvu
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS


def mlvu_root(root, counts, **changes):
    for number, (kind, count) in enumerate(counts.items(), start=1):
        item = {
            "video": f"{kind}.mp4",
            "duration": 600,
            "question": "What?",
            "candidates": ["one", "two", "three", "four"],
            "answer": "two",
            "question_type": kind,
        }
        folder = mlvu.FOLDERS.get(mlvu.SYNONYMS.get(kind, kind), f"{number}_{kind}")
        write(root / "json" / f"{folder}.json", [item | changes] * count)
    return root


def test_mlvu_is_the_mean_over_the_types_that_are_there(tmp_path):
    root = mlvu_root(tmp_path, {"plotQA": 4, "findNeedle": 1, "count": 1})
    found = score(
        BENCHMARKS["mlvu"], BENCHMARKS["mlvu"].read(root), ["B) two", "B", "C", "two", "B)", "A"]
    )
    assert values(found.categories["type"] | {metric.name: metric for metric in found.others}) == {
        "plotQA": 75.0,
        "needle": 100.0,
        "count": 0.0,
        "ego": pytest.approx(math.nan, nan_ok=True),
        "order": pytest.approx(math.nan, nan_ok=True),
        "anomaly_reco": pytest.approx(math.nan, nan_ok=True),
        "topic_reasoning": pytest.approx(math.nan, nan_ok=True),
        "M-Avg (lmms-eval)": 25.0,
        "types asked": 3.0,
        "accuracy": 66.67,
    }
    assert (found.main.name, round(found.main.value, 2)) == ("M-Avg", 58.33)


def test_mlvu_with_every_type_is_what_the_harness_gives(tmp_path):
    benchmark = BENCHMARKS["mlvu"]
    questions = benchmark.read(mlvu_root(tmp_path, dict.fromkeys(mlvu.TYPES, 2)))
    found = score(benchmark, questions, ["B", "A"] * 7)
    assert found.main.value == found.others[0].value == 50.0


def test_mlvus_test_set_has_nine_types_and_its_own_ids(tmp_path):
    item = {"video": "v.mp4", "question": "?", "candidates": ["one", "two"], "answer": "two"}
    rows = [
        item | {"question_type": kind, "question_id": f"T{k}"}
        for k, kind in enumerate(mlvu.TEST_TYPES)
    ]
    write(tmp_path / "test_mcq_gt.json", rows)
    benchmark = BENCHMARKS["mlvu_test"]
    questions = benchmark.read(tmp_path)
    assert [question.key for question in questions] == [f"T{k}" for k in range(9)]
    found = score(benchmark, questions, ["B"] * 3 + ["A"] * 6)
    assert round(found.main.value, 2) == round(found.others[0].value, 2) == 33.33
    (tmp_path / "test_mcq_gt.json").unlink()
    hidden = [{name: row[name] for name in row if name != "answer"} for row in rows[:2]]
    write(tmp_path / "MLVU_Test" / "test_question.json", hidden)
    graded = grades(benchmark, benchmark.read(tmp_path), ["B", "?"])
    assert benchmark.score(graded).statuses == {"no_reference": 2}
    assert benchmark.submission(graded) == [
        {"question_id": "T0", "question_type": "plotQA", "option": "B"},
        {"question_id": "T1", "question_type": "needleQA", "option": ""},
    ]
    write(tmp_path / "test_mcq_gt.json", [rows[0] | {"question_type": "poetry"}])
    with pytest.raises(RecordError, match="its type poetry is none of plotQA, needleQA"):
        benchmark.read(tmp_path)


def test_a_copy_of_mlvu_for_the_harness_is_the_same(tmp_path):
    row = {
        "video_name": "plotQA.mp4",
        "task_type": "plotQA",
        "question": "What?\n(A) one\n(B) two\n(C) three\n(D) four",
        "answer": "B",
    }
    parquet(tmp_path / "hub" / "data" / "test-0.parquet", [row])
    (theirs,) = BENCHMARKS["mlvu"].read(tmp_path / "hub")
    (ours,) = BENCHMARKS["mlvu"].read(mlvu_root(tmp_path / "own", {"plotQA": 1}))
    assert (theirs.prompt, theirs.answer) == (ours.prompt, ours.answer)
    assert ours.media[0].source == str(tmp_path / "own/video/1_plotQA/plotQA.mp4")
