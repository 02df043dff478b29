"""Tests of EgoSchema: a small copy of its files and its worked scores.

`harness` is what lmms-eval 0.7.3 gives for the same answers; it is not asserted against our code.
"""

import json
import math

import pytest
from tests.evaluation.benchmarks.helpers import grades, parquet, score, write

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS


def egoschema_root(root):
    rows = [
        {"q_uid": f"u{k}", "question": "?", **{f"option {n}": f"thing {n}" for n in range(5)}}
        for k in range(4)
    ]
    write(root / "questions.json", rows)
    write(root / "subset_answers.json", {"u0": 2, "u1": 2, "u2": 0})
    return root


def test_egoschemas_subset_is_scored_and_everything_is_submitted(tmp_path):
    benchmark = BENCHMARKS["egoschema"]
    questions = benchmark.read(egoschema_root(tmp_path))
    found = grades(benchmark, questions, ["C", "B", "zzz", "(E)"])
    scores = benchmark.score(found)
    assert (round(scores.main.value, 4), scores.main.count, scores.main.maximum) == (0.3333, 3, 1.0)
    assert scores.statuses == {"right": 1, "wrong": 1, "unparsed": 1, "no_reference": 1}
    assert json.loads(json.dumps(benchmark.submission(found))) == {
        "u0": 2,
        "u1": 1,
        "u2": -1,
        "u3": 4,
    }
    subset = BENCHMARKS["egoschema_subset"].read(tmp_path)
    assert [question.key for question in subset] == ["u0", "u1", "u2"]


def test_egoschema_without_public_answers(tmp_path):
    egoschema_root(tmp_path)
    (tmp_path / "subset_answers.json").unlink()
    benchmark = BENCHMARKS["egoschema"]
    found = score(benchmark, benchmark.read(tmp_path), ["A"] * 4)
    assert math.isnan(found.main.value)
    assert found.main.count == 0
    with pytest.raises(DataError, match=r"subset_answers.json: no public answers; expected layout"):
        BENCHMARKS["egoschema_subset"].read(tmp_path)
    write(tmp_path / "subset_answers.json", {"u0": 5})
    with pytest.raises(RecordError, match="its answer 5 is none of its 5 options"):
        benchmark.read(tmp_path)


def test_a_copy_of_egoschema_for_the_harness_is_the_same(tmp_path):
    options = [f"{letter}. thing {k}" for k, letter in enumerate("ABCDE")]
    rows = [{"video_idx": "u0", "question": "?", "option": options, "answer": "2"}]
    parquet(tmp_path / "hub" / "Subset" / "test-0.parquet", rows)
    rows = [{"video_idx": "u0", "question": "?", "option": options, "answer": None}]
    parquet(tmp_path / "hub" / "MC" / "test-0.parquet", rows)
    (theirs,) = BENCHMARKS["egoschema_subset"].read(tmp_path / "hub")
    ours = BENCHMARKS["egoschema"].read(egoschema_root(tmp_path / "own"))[0]
    assert (theirs.key, theirs.prompt, theirs.answer) == (ours.key, ours.prompt, ours.answer)
    assert BENCHMARKS["egoschema"].read(tmp_path / "hub")[0].answer is None
