"""Tests of NExT-QA: a small copy of its files and its scores."""

import pytest
from tests.evaluation.benchmarks.helpers import parquet, score, touch, values, write

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS


def test_nextqa_by_type(tmp_path):
    header = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    lines = [
        f'{video},900,640,480,"why, then",1,{qid},{kind},sit,jump over,run,"a, b",stand\n'
        for video, qid, kind in ((10, 0, "CW"), (10, 1, "TC"), (11, 0, "TP"), (11, 1, "DO"))
    ]
    write(tmp_path / "test.csv", header + "".join(lines))
    write(tmp_path / "map_vid_vidorID.json", {"10": "1164/3238737531"})
    touch(tmp_path / "NExTVideo" / "1164" / "3238737531.mp4")
    benchmark = BENCHMARKS["nextqa"]
    questions = benchmark.read(tmp_path)
    assert [question.key for question in questions] == ["10_0", "10_1", "11_0", "11_1"]
    assert questions[0].media[0].source == str(tmp_path / "NExTVideo/1164/3238737531.mp4")
    assert questions[2].media[0].source == str(tmp_path / "NExTVideo/11.mp4")
    found = score(benchmark, questions, ["b", "jump over", "A child B", "C"])
    assert (found.main.value, found.main.maximum) == (0.75, 1.0)
    assert values(found.categories["type"]) == {"CW": 1.0, "TC": 1.0, "TP": 1.0, "DO": 0.0}
    assert values(found.categories["group"]) == {"causal": 1.0, "temporal": 1.0, "descriptive": 0.0}
    write(tmp_path / "test.csv", header + lines[0] * 2)
    with pytest.raises(DataError, match="the question 10_0 is there twice"):
        benchmark.read(tmp_path)
    write(tmp_path / "map_vid_vidorID.json", {"10": "../../etc/x"})
    with pytest.raises(RecordError, match="leaves the root folder"):
        benchmark.read(tmp_path)


def test_nextqa_as_the_hub_has_it(tmp_path):
    row = {"video": 10, "question": "why, then", "answer": 1, "qid": 0, "type": "CW"}
    row |= {f"a{k}": text for k, text in enumerate(("sit", "jump over", "run", "a, b", "stand"))}
    line = '10,"why, then",1,0,CW,sit,jump over,run,"a, b",stand'
    write(tmp_path / "csv" / "test.csv", f"{','.join(row)}\n{line}\n")
    parquet(tmp_path / "hub" / "MC" / "test-0.parquet", [row])
    read = BENCHMARKS["nextqa"].read
    (csv,), (hub,) = (read(tmp_path / name) for name in ("csv", "hub"))
    for name in ("key", "prompt", "options", "answer", "categories"):
        assert getattr(hub, name) == getattr(csv, name)
    assert hub.media[0].source == str(tmp_path / "hub" / "NExTVideo" / "10.mp4")
