"""Tests of Perception Test: a small copy of its files and its scores."""

import pytest
from tests.evaluation.benchmarks.helpers import parquet, score, values, write

from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS


def test_perceptiontest_by_area(tmp_path):
    question = {
        "id": 3,
        "question": "?",
        "options": ["one", "two", "three"],
        "answer_id": 2,
        "area": "physics",
        "reasoning": "predictive",
        "tag": ["motion"],
    }
    path = tmp_path / "mc_question_valid.json"
    write(path, {"video_7": {"mc_question": [question, question | {"id": 4, "area": "memory"}]}})
    benchmark = BENCHMARKS["perceptiontest"]
    questions = benchmark.read(tmp_path)
    assert [question.key for question in questions] == ["video_7_3", "video_7_4"]
    found = score(benchmark, questions, ["The answer is C.", "unclear"])
    assert (found.main.value, found.main.maximum) == (0.5, 1.0)
    assert values(found.categories["area"]) == {"physics": 1.0, "memory": 0.0}
    row = {"video_name": "video_7", "question_id": "3", **question, "answer_id": "2"}
    del row["id"]
    parquet(tmp_path / "hub" / "mc_question_val" / "v-0.parquet", [row])
    assert benchmark.read(tmp_path / "hub")[0].prompt == questions[0].prompt
    for broken in ({"v": []}, {"v": {"mc_question": {}}}, {"v": {"mc_question": [1]}}):
        write(path, broken)
        with pytest.raises(RecordError, match=r"mc_question_valid\.json"):
            benchmark.read(tmp_path)
