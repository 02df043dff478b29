"""Tests of Video-MME's reader and of its worked scores."""

import dataclasses
import math

import pytest
from tests.evaluation.benchmarks.helpers import grades, score, touch, values, write

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks import videomme
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS

OPTIONS = ["A. red", "B. green", "C. blue", "D. black"]
SRT = """1
00:00:00,000 --> 00:00:02,000
<i>Hello</i> there &amp; here

2
00:00:02,500 --> 00:00:04,000
<video> of
2

3
00:00:05,000 --> 00:00:06,000

"""


def row(number, duration, answer, more=()):
    return {
        "video_id": f"{number:03}",
        "videoID": f"yt{number}",
        "duration": duration,
        "domain": "Knowledge",
        "sub_category": "History",
        "question_id": f"{number:03}-1",
        "task_type": "Counting Problem",
        "question": "Which color has the <video>?",
        "options": OPTIONS,
        "answer": answer,
    } | dict(more)


@pytest.fixture
def root(tmp_path):
    durations, answers = ("short", "short", "medium", "long", "long"), "AACDD"
    rows = [row(k, *pair) for k, pair in enumerate(zip(durations, answers, strict=True))]
    write(tmp_path / "videomme.json", rows)
    touch(tmp_path / "data" / "yt0.mp4")
    touch(tmp_path / "elsewhere" / "yt1.webm")
    write(tmp_path / "subtitle" / "yt0.srt", SRT)
    return tmp_path


def test_the_worked_score_is_the_micro_accuracy(root):
    benchmark = BENCHMARKS["videomme"]
    questions = benchmark.read(root)
    found = score(benchmark, questions, ["A", "B", "C.", "", "The answer is D"])
    assert (found.main.value, found.main.count, found.main.maximum) == (60.0, 5, 100.0)
    assert values(found.categories["duration"]) == {"short": 50.0, "medium": 100.0, "long": 50.0}
    assert found.statuses == {"right": 3, "wrong": 1, "unparsed": 1}
    # the mean over durations, which is not what is published: 66.7
    harness = 60.0
    assert found.main.value == harness


def test_unreadable_media_are_counted_and_not_scored(root):
    benchmark = BENCHMARKS["videomme"]
    questions = benchmark.read(root)
    found = score(benchmark, questions, ["A", "A", "C", "A", OSError("gone")])
    assert (found.main.value, found.main.count) == (75.0, 4)
    assert found.statuses == {"right": 3, "wrong": 1, "unreadable": 1}
    assert math.isnan(benchmark.score([]).main.value)


def test_questions_hold_options_without_letters_and_the_text_as_it_is(root):
    first, second, third, *_ = BENCHMARKS["videomme"].read(root)
    assert first.options == ("red", "green", "blue", "black")
    assert first.prompt == (
        "Which color has the <video>?\nA. red\nB. green\nC. blue\nD. black\nAnswer with the letter."
    )
    assert first.media[0].source == str(root / "data" / "yt0.mp4")
    assert second.media[0].source == str(root / "elsewhere" / "yt1.webm")
    assert third.media[0].source == str(root / "data" / "yt2.mp4")  # missing; the runner counts it
    assert (first.key, first.answer) == ("000-1", 0)


def test_subtitles_stand_before_the_question(root):
    benchmark = BENCHMARKS["videomme_subtitles"]
    first, second, *_ = benchmark.read(root)
    assert first.prompt.startswith(
        "Subtitles of the video:\nHello there & here\n<video> of 2\n\nWhich color"
    )
    assert second.prompt.startswith("Subtitles of the video:\n(none)\n\nWhich")
    for path in (root / "subtitle").iterdir():
        path.unlink()
    (root / "subtitle").rmdir()
    with pytest.raises(DataError, match="subtitle: no such folder; expected layout: videomme"):
        benchmark.read(root)


def test_long_subtitles_are_sampled_evenly():
    cues = [str(k) for k in range(1000)]
    kept = videomme.spaced(cues, 32)
    assert (len(kept), kept[0], kept[-1]) == (32, "0", "999")
    assert videomme.spaced(cues[:32], 32) == cues[:32]


def test_result_files_with_one_record_per_video_are_read(tmp_path):
    shared = {"videoID": "yt", "duration": "short"}
    questions = [
        {"question_id": f"1-{k}", "question": "?", "options": OPTIONS, "answer": "B"}
        for k in range(2)
    ]
    write(tmp_path / "videomme.json", [{**shared, "questions": questions}])
    found = BENCHMARKS["videomme"].read(tmp_path)
    assert [question.key for question in found] == ["1-0", "1-1"]
    assert found[0].media_key == found[1].media_key
    write(tmp_path / "videomme.json", [{**shared, "questions": "none"}])
    with pytest.raises(RecordError, match="no list"):
        BENCHMARKS["videomme"].read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, r"videomme.json\[0\]: its answer E is no letter of 4 options"),
        ({"answer": ""}, "'answer' is , no text"),
        ({"options": "A. red"}, "'options' is A. red, no list"),
        ({"options": [f"{k}" for k in range(27)]}, "has 27 options"),
        ({"question": None}, "has no field 'question'; it has"),
        ({"videoID": "../../secret"}, "leaves the root folder"),
        ({"videoID": "/etc/passwd"}, "leaves the root folder"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    write(tmp_path / "videomme.json", [row(0, "short", "A", change)])
    with pytest.raises(RecordError, match=message):
        BENCHMARKS["videomme"].read(tmp_path)


def test_duplicate_ids_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such file; expected layout: videomme/\*\.parquet"):
        BENCHMARKS["videomme"].read(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        BENCHMARKS["videomme"].read(tmp_path / "nowhere")
    write(tmp_path / "videomme.json", [row(0, "short", "A")] * 2)
    with pytest.raises(DataError, match=r"videomme.json: the question 000-1 is there twice"):
        BENCHMARKS["videomme"].read(tmp_path)
    write(tmp_path / "videomme.json", [])
    with pytest.raises(DataError, match="has no questions"):
        BENCHMARKS["videomme"].read(tmp_path)


def test_a_question_without_a_public_answer_leaves_the_denominator(root):
    benchmark = BENCHMARKS["videomme"]
    first, second, *_ = benchmark.read(root)
    hidden = dataclasses.replace(second, answer=None)
    found = grades(benchmark, [first, hidden], ["A", "A"])
    assert [grade.status for grade in found] == ["right", "no_reference"]
    assert (benchmark.score(found).main.value, benchmark.score(found).main.count) == (100.0, 1)
