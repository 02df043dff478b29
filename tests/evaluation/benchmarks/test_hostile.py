"""Annotation files are not trusted: whatever is in a field, reading gives questions or one line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.base import Response
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS

CHOICES = "What runs?\nA. a dog\nB. a cat"
# By benchmark: its file, a valid record, and what is written for records.
FILES = {
    "videomme": (
        "videomme.json",
        {"videoID": "v", "question_id": "1", "question": "?", "options": ["A. x", "B. y"]}
        | {"answer": "A", "duration": "short"},
        lambda record: [record],
    ),
    "videomme_subtitles": (
        "videomme.json",
        {"videoID": "v", "question_id": "1", "question": "?", "options": ["A. x", "B. y"]}
        | {"answer": "A"},
        lambda record: [record],
    ),
    "mlvu": (
        "json/1_plotQA.json",
        {"video": "v.mp4", "question": "?", "candidates": ["x", "y"], "answer": "x"}
        | {"question_type": "plotQA"},
        lambda record: [record],
    ),
    "mlvu_test": (
        "test_mcq_gt.json",
        {"video_name": "v", "question": "?\n(A) x\n(B) y", "answer": "A", "task_type": "ego"},
        lambda record: [record],
    ),
    "egoschema": (
        "questions.json",
        {"q_uid": "u", "question": "?"} | {f"option {k}": str(k) for k in range(5)},
        lambda record: [record],
    ),
    "cinepile": (
        "test.json",
        {"yt_clip_link": "https://y.com/watch?v=1", "subtitles": "s", "question": "?"}
        | {
            "choices": ["x", "y"],
            "answer_key": "x",
            "question_category": "c",
            "hard_split": "True",
        },
        lambda record: [record],
    ),
    "perceptiontest": (
        "all_valid.json",
        {"id": 1, "question": "?", "options": ["x", "y"], "answer_id": 0, "area": "a", "tag": []},
        lambda record: {"v": {"mc_question": [record]}},
    ),
    "tempcompass_multi_choice": (
        "questions/multi-choice.json",
        {"question": CHOICES, "answer": "A. a dog"},
        lambda record: {"v": {"action": [record]}},
    ),
    "tempcompass_caption_matching": (
        "caption_matching.json",
        {"question": "?\nOption 1: x\nOption 2: y", "answer": "Option 1: x"},
        lambda record: {"v": {"action": [record]}},
    ),
    "tempcompass_captioning": (
        "captioning.json",
        {"question": "?", "answer": "x", "mc_question": CHOICES, "mc_answer": "B. a cat"},
        lambda record: {"v": {"action": [record]}},
    ),
    "tempcompass_yes_no": (
        "yes_no.json",
        {"question": "?", "answer": "yes"},
        lambda record: {"v": {"action": [record]}},
    ),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(
        ["../x", "A\nB", "x" * 300, "\x00", "\ud800", "A", "Z", "(A", "[[1", "http://[", "9" * 5000]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_field_of_any_value_is_read_or_refused_in_one_line(tmp_path, name, data):
    file, valid, wrap = FILES[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "subtitle").mkdir(exist_ok=True)
    field = data.draw(st.sampled_from(sorted(valid)))
    value = data.draw(VALUES)
    if isinstance(valid[field], list) and data.draw(st.booleans()):
        value = [*valid[field], value]
    path.write_text(json.dumps(wrap({**valid, field: value})))
    benchmark = BENCHMARKS[name]
    try:
        questions = benchmark.read(tmp_path)
    except DataError as error:
        questions, message = (), str(error)
    else:
        message = ""
    assert "\n" not in message
    assert len(message) < 1000
    if not questions:
        return
    grades = [benchmark.grade(Response(question=q, text=q.text[:50])) for q in questions]
    assert benchmark.score(grades).statuses
    "".join(question.prompt for question in questions).encode()


@pytest.mark.parametrize("name", FILES)
def test_the_valid_record_is_read(tmp_path, name):
    file, valid, wrap = FILES[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / file).write_text(json.dumps(wrap(valid)))
    assert len(BENCHMARKS[name].read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("subtitles", "\ud800"), ("yt_clip_link", "http://["), ("yt_clip_link", "https://y.com/")],
)
def test_links_and_subtitles_that_cannot_be(tmp_path, field, value):
    file, valid, wrap = FILES["cinepile"]
    (tmp_path / file).write_text(json.dumps(wrap({**valid, field: value})))
    with pytest.raises(DataError, match=r"names no video|is not valid Unicode"):
        BENCHMARKS["cinepile"].read(tmp_path)
