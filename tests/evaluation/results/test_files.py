"""JSON files of results: read back exactly, and refused in one line where they are not whole."""

import csv
import dataclasses
import json
import math

import pytest

from elva_jax.data.example import Media
from elva_jax.errors import ConfigError, DataError
from elva_jax.evaluation.results import csv as csv_files
from elva_jax.evaluation.results import files
from elva_jax.evaluation.results.codec import decode, encode
from elva_jax.inference.scoring import Likelihood


def without_intervals(evaluation):
    """Equal to another one: NaN is not equal to itself."""
    return json.loads(json.dumps(encode(evaluation), allow_nan=False))


def test_round_trip_is_exact(run, tmp_path):
    path = files.save(run, tmp_path / "deep" / "run.json")
    back = files.load(path)
    assert [without_intervals(e) for e in back] == [without_intervals(e) for e in run]
    for one, other in zip(back, run, strict=True):
        assert one.grades == other.grades
        assert one.settings == other.settings
        ways = [of[0].response for of in one.grades.values()]
        assert all(response is ways[0] for response in ways)
    again = files.save(back, tmp_path / "again.json")
    assert again.read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_every_prediction_is_in_the_file(run, tmp_path):
    content = json.loads(
        files.save(run, tmp_path / "run.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    first, second = content["evaluations"]
    assert len(first["predictions"]) == 24
    assert first["scores"]["generated"]["statuses"] == {
        "right": 6, "wrong": 6, "unparsed": 6, "unreadable": 6
    }  # fmt: skip
    record = first["predictions"][1]
    assert record["question"]["prompt"] == "Question 1?\nA. red\nB. blue"
    assert record["question"]["media"][0]["source"] == "/data/v0.mp4"
    assert record["text"] == "A"
    assert record["tokens"] == [100, 60, 30]
    assert record["seconds"] == 0.125
    assert record["likelihoods"] == [{"total": -1.25, "tokens": 2}, {"total": -3.1, "tokens": 3}]
    assert record["grades"]["generated"] == {
        "parsed": 1, "status": "wrong", "credit": 0.0, "details": {}
    }  # fmt: skip
    assert set(record["grades"]) == {"generated", "likelihood"}
    assert second["predictions"][0]["grades"]["generated"]["details"] == {"judge_score": 4.0}
    assert second["settings"]["prompt_version"] == "gqa-3"
    assert first["settings"]["weights_hash"] == "3fa9c01b22d4e680"


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.1, -1e300])
def test_numbers_come_back(value):
    text = json.dumps(encode(Likelihood(value, 3)), allow_nan=False)
    assert decode(Likelihood, json.loads(text), "x") == Likelihood(value, 3)


def test_encoded_images_are_named_by_their_content():
    made = encode(Media(b"\x89PNG", "image"))
    assert made["source"].startswith("sha256:")
    assert encode(decode(Media, made, "media")) == made


def damaged(change):
    def apply(content):
        change(content["evaluations"][0])
        return content

    return apply


def first_prediction(change):
    return damaged(lambda evaluation: change(evaluation["predictions"][0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [], "no result of elva evaluate"),
        (lambda c: {"families": {}, "macro": {}}, "has no predictions"),
        (lambda c: {**c, "version": 99}, "version 99"),
        (damaged(lambda e: e.update({"\x1b[2J": 1})), r"unknown key '\ufffd\[2J'"),
        (lambda c: {**c, "evaluations": []}, "not empty"),
        (damaged(lambda e: e.pop("title")), "lacks the key 'title'"),
        (damaged(lambda e: e.update(more=1)), "unknown key 'more'"),
        (damaged(lambda e: e["scores"]["generated"]["main"].update(value="60")), "a number"),
        (damaged(lambda e: e.update(predictions={})), "predictions: expected an array"),
        (first_prediction(lambda p: p.update(tokens=[1.5])), r"tokens\[0\]: expected int"),
        (first_prediction(lambda p: p["question"].pop("key")), "lacks the key 'key'"),
        (first_prediction(lambda p: p["grades"].update(magic={})), "belongs to no scores"),
        (
            first_prediction(lambda p: p["grades"]["generated"].update(status="fine")),
            "expected one of right, wrong",
        ),
        (first_prediction(lambda p: p["question"].update(media=[5])), "expected an object, got 5"),
        (damaged(lambda e: e["scores"]["generated"]["main"].update(value=10**400)), "300 digits"),
        (damaged(lambda e: e["scores"]["generated"]["main"].update(value=1e10)), "is no score"),
        (damaged(lambda e: e["scores"]["generated"]["main"].update(maximum=0)), "end of a scale"),
        (
            damaged(lambda e: e["scores"]["generated"]["main"].update(maximum=None)),
            "end of a scale",
        ),
        (damaged(lambda e: e.update(scores={})), "has no way of answering"),
        (first_prediction(lambda p: p["question"].update(key="q1")), "'q1' is there twice"),
        (first_prediction(lambda p: p["grades"]["generated"].update(credit=None)), "is no score"),
        (lambda c: {**c, "evaluations": c["evaluations"][:1] * 2}, "'videomme' is there twice"),
    ],
)
def test_foreign_and_damaged_files_are_one_line(run, tmp_path, change, message):
    path = files.save(run, tmp_path / "run.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message) as error:
        files.load(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "write it again" in str(error.value)


def test_cut_and_missing_files_are_one_line(run, tmp_path):
    path = files.save(run, tmp_path / "run.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="is not JSON"):
        files.load(path)
    with pytest.raises(DataError, match="cannot be opened"):
        files.load(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="--json"):
        files.save(run, tmp_path)


def test_csv_has_every_number_and_setting(run, tmp_path):
    hostile = {"note": "=1+1", "\uff1dA1": "\n@x", "-\ud800": ""}
    run[0] = dataclasses.replace(run[0], settings={**run[0].settings, **hostile})
    path = csv_files.save(run, tmp_path / "run.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(r["benchmark"], r["answer"], r["axis"], r["category"], r["number"]): r for r in rows}
    assert len(found) == len(rows) == 2 * (2 + 3 + 2) + (2 + 1 + 1)
    whole = found["videomme", "generated", "", "", "accuracy"]
    assert float(whole["score"]) == 25.0
    assert whole["count"] == "24"
    assert (whole["low"], whole["maximum"]) == ("", "100.0")
    short = found["videomme", "generated", "duration", "short", "accuracy"]
    assert float(short["score"]) == run[0].scores["generated"].categories["duration"]["short"].value
    assert (short["weights_hash"], short["frames"], short["versions.jax"]) == (
        "3fa9c01b22d4e680", "8", "0.10.2"
    )  # fmt: skip
    assert (short["note"], short["'\uff1dA1"]) == ("'=1+1", "'\n@x")
    assert "'-?" in short
    assert found["gqa", "generated", "", "", "accuracy"]["prompt_version"] == "gqa-3"
