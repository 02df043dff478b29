"""Tests of MVBench: a small copy of its files and its worked scores.

`harness` is what lmms-eval 0.7.3 gives for the same answers; it is not asserted against our code.
"""

import math

import pytest
from PIL import Image
from tests.evaluation.benchmarks.helpers import score, touch, values, write

from elva_jax.errors import DataError, RecordError, VideoError
from elva_jax.evaluation.benchmarks import mvbench
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS
from elva_jax.video.read import read_frames


def mvbench_root(root, counts):
    """All 20 files, with `counts` questions of some tasks and one of the others."""
    for task in mvbench.TASKS:
        items = [
            {"video": "v.mp4", "question": "?", "candidates": ["one", "two"], "answer": "two"}
            for _ in range(counts.get(task, 1))
        ]
        write(root / "json" / f"{task}.json", items)
    return root


def mvbench_score(root, answers):
    """The scores of those tasks that `answers` has, as with a limit."""
    benchmark = BENCHMARKS["mvbench"]
    questions = benchmark.read(mvbench_root(root, {k: len(v) for k, v in answers.items()}))
    asked = [q for q in questions if q.categories["task"] in answers]
    return score(benchmark, asked, [text for task in answers for text in answers[task]])


def test_mvbench_is_the_mean_of_its_tasks(tmp_path):
    answers = {
        "action_sequence": ["B", "two"],
        "action_antonym": ["(B) two", "A"],
        "object_shuffle": ["A", "one", "C", "neither"],
    }
    found = mvbench_score(tmp_path, answers)
    assert (found.main.value, found.main.count) == (50.0, 8)
    assert values({metric.name: metric for metric in found.others}) == {"accuracy": 37.5}
    assert values(found.categories["task"])["action_sequence"] == 100.0
    assert math.isnan(found.categories["task"]["action_count"].value)
    assert list(found.categories["task"]) == list(mvbench.TASKS)


def test_an_empty_answer_stays_in_mvbenchs_denominator(tmp_path):
    found = mvbench_score(tmp_path, {"action_sequence": ["B", "", "A"]})
    harness = 50.0
    assert round(found.main.value, 1) == 33.3 != harness
    assert found.statuses == {"right": 1, "unparsed": 1, "wrong": 1}


def test_mvbenchs_videos_have_bounds_and_folders_per_task(tmp_path):
    mvbench_root(tmp_path, {})
    clip = {"question": "?", "candidates": ["one", "two", "a"], "answer": "a"}
    bounds = {"start": 1.5, "end": 4.0}
    write(tmp_path / "json/action_sequence.json", [{"video": "x.mp4", **bounds, **clip}])
    write(tmp_path / "json/episodic_reasoning.json", [{"video": "show", **bounds, **clip}])
    right = touch(tmp_path / "video/star/Charades_v1_480/x.mp4")
    touch(tmp_path / "video/clevrer/video_validation/x.mp4")
    frame = touch(tmp_path / "deep/tvqa/frames_fps3_hq/show/00001.jpg")
    by_key = {question.key: question for question in BENCHMARKS["mvbench"].read(tmp_path)}
    assert len(by_key) == 20
    first, frames = by_key["action_sequence/0"].media[0], by_key["episodic_reasoning/0"].media[0]
    assert (first.source, first.start, first.end) == (right, 1.5, 4.0)
    assert frames.source == frame.removesuffix("/00001.jpg")
    assert (frames.start, frames.end) == (4.5, 12.0)  # three frames per second, read as one
    assert by_key["action_sequence/0"].answer == 2
    write(tmp_path / "json/action_sequence.json", [{"video": "x", "start": 9, "end": 2, **clip}])
    assert BENCHMARKS["mvbench"].read(tmp_path)[0].media[0].span == (9.0, 2.0)  # not readable
    write(tmp_path / "json/action_sequence.json", [{"video": "x", "start": "soon", **clip}])
    with pytest.raises(RecordError, match="'start' is soon, no time in seconds"):
        BENCHMARKS["mvbench"].read(tmp_path)
    write(tmp_path / "json/action_sequence.json", [{"video": "x", **clip}])
    (tmp_path / "json/object_shuffle.json").unlink()
    with pytest.raises(DataError, match=r"json/object_shuffle.json: no such file; expected layout"):
        BENCHMARKS["mvbench"].read(tmp_path)
    write(tmp_path / "json/object_shuffle.json", [{"video": "x", **clip, "answer": "b"}])
    with pytest.raises(RecordError, match=r"object_shuffle.json\[0\]: its answer b is none of its"):
        BENCHMARKS["mvbench"].read(tmp_path)


def test_the_frames_of_a_folder_are_those_between_the_bounds(tmp_path):
    mvbench_root(tmp_path, {})
    record = {"video": "show", "question": "?", "candidates": ["x", "y"], "answer": "x"}
    write(tmp_path / "json/episodic_reasoning.json", [record | {"start": 1.0, "end": 3.0}])
    folder = tmp_path / "video/tvqa/frames_fps3_hq/show"
    folder.mkdir(parents=True)
    for k in range(12):
        Image.new("L", (8, 8), k).save(folder / f"{k + 1:05}.png")
    by_key = {question.key: question for question in BENCHMARKS["mvbench"].read(tmp_path)}
    (clip,) = by_key["episodic_reasoning/0"].media
    frames = read_frames(clip.source, num_frames=6, span=clip.span)
    assert [int(pixels[0, 0, 0]) for pixels in frames.pixels] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(VideoError):
        read_frames(clip.source, num_frames=6, span=(9.0, 2.0))
