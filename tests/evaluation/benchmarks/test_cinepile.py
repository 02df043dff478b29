"""Tests of CinePile: a small copy of its files and its worked scores.

`harness` is what lmms-eval 0.7.3 gives for the same answers; it is not asserted against our code.
"""

import pytest
from tests.evaluation.benchmarks.helpers import grades, parquet, score, values, write

from elva_jax.evaluation.benchmarks.registry import BENCHMARKS

CATEGORIES = (
    *("Character and\nRelationship Dynamics", "Narrative and Plot Analysis"),
    *("Setting and Technical Analysis", "Temporal", "Theme Exploration"),
)


def cinepile_row(category, hard="False"):
    return {
        "yt_clip_link": "https://www.youtube.com/watch?v=abc-123&t=4",
        "subtitles": "Hello <video>",
        "question": "What?",
        "choices": ["a blue car", "a red car", "a tree", "a dog", "a house"],
        "answer_key": "a red car",
        "answer_key_position": 1,
        "question_category": category,
        "hard_split": hard,
    }


@pytest.mark.parametrize(
    ("text", "harness", "want"),
    [
        ("B", 1, 1),
        ("b", 1, 1),
        ("Answer: B", 1, 1),
        ("**Answer:** B", 1, 1),
        ("Answer: B) a red car", 1, 1),
        ("a red car", 1, 1),
        ("B)", 0, 1),
        ("(B)", 0, 1),
        ("B) a red car", 0, 1),
        ("The answer is B", 0, 1),
        ("Answer: B) a blue car", 0, 0),
        ("Answer: B) a blue bus", 0, 0),
    ],
)
def test_cinepiles_answers(tmp_path, text, harness, want):
    write(tmp_path / "test.json", [cinepile_row("Temporal")])
    benchmark = BENCHMARKS["cinepile"]
    (question,) = benchmark.read(tmp_path)
    assert grades(benchmark, [question], [text])[0].credit == want


def test_cinepiles_score_is_over_all_categories(tmp_path):
    rows = [cinepile_row(category, "True") for category in CATEGORIES] + [cinepile_row("Temporal")]
    write(tmp_path / "test.json", rows)
    benchmark = BENCHMARKS["cinepile"]
    questions = benchmark.read(tmp_path)
    found = score(benchmark, questions, ["B"] * 5 + ["A"])
    assert round(found.main.value, 2) == 83.33
    assert (found.others[0].name, found.others[0].value) == ("accuracy (hard split)", 100.0)
    assert found.others[0].count == 5
    assert values(found.categories["category"])["Character and Relationship Dynamics"] == 100.0
    one = benchmark.score(grades(benchmark, questions[:1], ["B"]))  # the harness: a KeyError
    assert one.main.value == 100.0
    assert questions[0].prompt.startswith("Subtitles of the scene:\nHello <video>\n\nWhat?\nA. a b")
    assert questions[0].text.startswith("Subtitles")  # what likelihoods are measured after
    assert questions[0].media[0].source == str(tmp_path / "videos" / "abc-123.mp4")


def test_cinepile_as_the_hub_has_it(tmp_path):
    rows = [cinepile_row(category) for category in CATEGORIES]
    write(tmp_path / "test.json", rows)
    questions = BENCHMARKS["cinepile"].read(tmp_path)
    (tmp_path / "test.json").unlink()
    parquet(tmp_path / "data" / "test-0.parquet", rows)
    assert BENCHMARKS["cinepile"].read(tmp_path) == questions
