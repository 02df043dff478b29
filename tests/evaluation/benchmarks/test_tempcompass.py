"""Tests of TempCompass: a small copy of its files and its scores."""

import pytest
from tests.evaluation.benchmarks.helpers import grades, parquet, score, write

from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS


def test_tempcompass_reads_its_four_tasks(tmp_path):
    choices = "What runs?\nA. a dog\nB. a cat"
    files = {
        "multi-choice": {"question": choices, "answer": "B. a cat"},
        "yes_no": {"question": "Does it run?", "answer": "yes"},
        "caption_matching": {
            "question": "Which fits?\nCaption A: A dog runs.\nCaption B: A cat runs.",
            "answer": "Caption B: A cat runs.",
        },
        "captioning": {"question": "Describe it.", "answer": "A. a cat"},
    }
    for name, item in files.items():
        write(
            tmp_path / "questions" / f"{name}.json", {"v1": {"action": [item] * 2, "speed": [item]}}
        )
    texts = {
        "multi_choice": ["B", "a cat", "A"],
        "caption_matching": ["A cat runs.", "B", "Caption A: A dog runs."],
        "yes_no": ["Yes.", "yes, it does", "not sure"],
        "captioning": ["A cat runs fast", "something runs", "the dog barks"],
    }
    expected = {
        "multi_choice": {"right": 2, "wrong": 1},
        "caption_matching": {"right": 2, "wrong": 1},
        "yes_no": {"right": 2, "unparsed": 1},
        "captioning": {"right": 1, "unjudged": 1, "wrong": 1},
    }
    for name, answers in texts.items():
        benchmark = BENCHMARKS[f"tempcompass_{name}"]
        questions = benchmark.read(tmp_path)
        assert [question.key for question in questions] == [
            "v1/action/0",
            "v1/action/1",
            "v1/speed/0",
        ]
        found = score(benchmark, questions, answers)
        assert found.statuses == expected[name], name
        assert list(found.categories["aspect"]) == ["action", "speed"]
        if name == "captioning":  # not to be taken for the published accuracy, which a judge gives
            assert (found.main.name, found.main.value) == ("named option", pytest.approx(100 / 3))
            assert {of.name for of in found.categories["aspect"].values()} == {"named option"}
            # Without articles one of three words is "cat", the right option: 2 · 1 / (3 + 1).
            (f1,) = found.others
            assert (f1.name, f1.value) == ("token F1", pytest.approx(100 * 0.5 / 3))
    write(
        tmp_path / "questions/yes_no.json", {"v1": {"action": [{"question": "?", "answer": "B"}]}}
    )
    with pytest.raises(RecordError, match=r"v1/action/0: its answer B is neither yes"):
        BENCHMARKS["tempcompass_yes_no"].read(tmp_path)


def test_a_copy_of_tempcompass_for_the_harness_is_read(tmp_path):
    row = {"video_id": "v1", "dim": "action", "question": "Describe it.", "answer": "x"}
    about = {"mc_question": "What runs?\nA. a dog\nB. a cat", "mc_answer": "B"}
    parquet(tmp_path / "captioning" / "test-0.parquet", [row | about])
    benchmark = BENCHMARKS["tempcompass_captioning"]
    (question,) = benchmark.read(tmp_path)
    assert (question.prompt, question.references) == ("Describe it.", ("a cat",))
    assert benchmark.score(grades(benchmark, [question], [OSError("gone")])).statuses == {
        "unreadable": 1
    }
