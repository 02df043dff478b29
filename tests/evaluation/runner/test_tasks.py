"""`elva evaluate --tasks`: options, files, exit statuses; and where a benchmark's files are."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import shapes
from tests.tools.recaption.conftest import Server, completion, send

from elva_jax import testing
from elva_jax.cli import main
from elva_jax.errors import ConfigError, DataError
from elva_jax.evaluation.results import files, html, thumbnails
from elva_jax.evaluation.runner.run import evaluate_benchmarks, unreadable
from elva_jax.evaluation.runner.settings import BenchmarkConfig
from elva_jax.evaluation.runner.tasks import read_questions, resolve


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shapes.small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A copy of Video-MME in small: two videos of which one is missing, three questions."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "videomme"
    (folder / "data").mkdir(parents=True)
    testing.write_video(folder / "data" / "a.mp4", testing.tiny_video())
    records = [
        {
            "videoID": video,
            "question_id": f"{video}-{number}",
            "question": "What color is the square?",
            "options": ["A. red", "B. green", "C. blue", "D. none"],
            "answer": "A",
            "duration": "short",
        }
        for video, number in (("a", 1), ("a", 2), ("b", 1))
    ]
    (folder / "videomme.json").write_text(json.dumps(records))
    return root


def evaluate(*words):
    return main(["evaluate", *map(str, words)])


def test_results_are_written_and_missing_media_end_with_status_3(
    checkpoint, root, tmp_path, capsys
):
    words = ("--checkpoint", checkpoint, "--tasks", "videomme", "--data-root", root)
    output = tmp_path / "scores"
    assert evaluate(*words, "--output", output, "--json", tmp_path / "r.json") == 3
    out, err = capsys.readouterr()
    assert "Video-MME" in out
    assert "videomme: 1 questions could not be asked, and are in no score" in err
    assert str(root / "videomme" / "data" / "b.mp4") in err
    assert (tmp_path / "r.json").read_text() == (output / "results.json").read_text()
    (evaluation,) = json.loads((output / "results.json").read_text())["evaluations"]
    assert evaluation["settings"]["checkpoint"] == str(checkpoint)
    assert next(iter(evaluation["scores"])) == "generated"
    assert evaluation["scores"]["letter"]["statuses"]["unreadable"] == 1
    # The same command asks nothing again; --limit is of questions, and here leaves the missing out.
    assert evaluate(*words, "--output", output, "--limit", 2) == 0
    assert len((next(output.glob("*/answers/*/answers.jsonl"))).read_text().splitlines()) == 4


def test_a_task_without_options_is_named_and_the_others_are_asked(
    checkpoint, root, tmp_path, capsys
):
    (tmp_path / "videomme").symlink_to(root / "videomme")
    open_qa = tmp_path / "msrvtt_qa"
    open_qa.mkdir()
    asked = [{"question": "what moves?", "answer": "square", "video_id": 7, "id": 1}]
    (open_qa / "test_qa.json").write_text(json.dumps(asked))
    words = ("--checkpoint", checkpoint, "--data-root", tmp_path, "--answers", "letter", "--tasks")
    saved = tmp_path / "r.json"
    tasks = "msrvtt_qa,videomme"
    assert evaluate(*words, tasks, "--limit", 2, "--json", saved) == 3
    err = capsys.readouterr().err
    assert "answers: msrvtt_qa has no options" in err
    assert "It is left out, and the others are asked" in err
    (evaluation,) = json.loads(saved.read_text())["evaluations"]
    assert evaluation["benchmark"] == "videomme"
    assert evaluate(*words, "msrvtt_qa") == 2
    assert "add 'generated'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "videomne", "--data-root", "."], "no such benchmark; did you mean videomme?"),
        (["--tasks", "videomme"], "--tasks needs --data-root"),
        (["--output", "x"], "--output needs --tasks"),
        (["--mesh", "context=2"], "--mesh: 'context=2' is not like fsdp=2,tensor=4, with the axes"),
        (["--mesh", "data=-1,fsdp=-1"], "only one axis can take the remaining devices"),
        (["--mesh", "data=2"], "mesh: data=2, fsdp=1, context=1, tensor=1 does not divide"),
        (["--tasks", "videomme", "--data-root", ".", "--answers", "x"], "answers: 'x' is unknown"),
        (
            [*("--tasks", "videomme", "--data-root", "."), "--mesh", "tensor=64"],
            "mesh: data=1, fsdp=1, context=1, tensor=64 does not divide",
        ),
    ],
)
def test_misuse_is_one_line(words, message, capsys):
    try:
        status = evaluate("--checkpoint", "none", *words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_benchmarks_by_name(root, tmp_path):
    assert [b.name for b in resolve(["videomme", shapes.BENCHMARK])] == ["videomme", "shapes"]
    with pytest.raises(ConfigError, match="names no benchmark"):
        resolve([])
    (videomme,) = resolve(["videomme"])
    (subtitles,) = resolve(["videomme_subtitles"])
    for folder in (root, root / "videomme"):
        assert len(read_questions(videomme, folder)) == 3
    with pytest.raises(DataError, match="videomme/subtitle: no such folder"):
        read_questions(subtitles, root)
    with pytest.raises(
        DataError, match=r"no such file; expected layout: .* or in a folder there w"
    ):
        read_questions(videomme, tmp_path)


def test_media_may_be_links_within_the_data_root_and_its_hub_only(root, tmp_path):
    """Such a folder from elsewhere could show any file of this machine in the results."""
    (videomme,) = resolve(["videomme"])
    hub = tmp_path / "hub" / "datasets--lmms-lab--Video-MME"
    snapshot, blob = hub / "snapshots" / "0123" / "videomme", hub / "blobs" / "4567"
    blob.parent.mkdir(parents=True)
    shutil.copytree(root / "videomme", snapshot)
    video = snapshot / "data" / "a.mp4"
    video.rename(blob)
    video.symlink_to(os.path.relpath(blob, video.parent))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "videomme").symlink_to(snapshot)  # the user's own

    def problems(folder, **given):
        return [question.problem for question in read_questions(videomme, folder, **given)]

    for folder in (snapshot.parent, tmp_path / "data"):
        assert problems(folder) == ["", "", ""]
    near, outside = tmp_path / "data" / "store", tmp_path / "4567"
    near.mkdir()
    for place in (near / "4567", outside):
        shutil.copy(blob, place)
        video.unlink()
        video.symlink_to(place)
        if place != outside:
            assert problems(tmp_path / "data") == ["", "", ""]
    reason = f"{video}: links lead out of {tmp_path / 'data'}, to {outside}; copy the file, or give"
    assert [text.partition(" --follow")[0] for text in problems(tmp_path / "data")] == [
        reason,
        reason,
        "",
    ]
    assert problems(tmp_path / "data", follow_links=True) == ["", "", ""]
    (subtitles,) = resolve(["videomme_subtitles"])
    (snapshot / "subtitle").symlink_to(tmp_path)
    (tmp_path / "b.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nsecret\n")
    *_, last = read_questions(subtitles, tmp_path / "data")
    assert last.problem.startswith(
        f"{tmp_path / 'data/videomme/subtitle/b.srt'}: links lead out of"
    )
    assert "secret" not in last.prompt
    *_, last = read_questions(subtitles, tmp_path / "data", follow_links=True)
    assert "secret" in last.prompt
    annotations = snapshot / "videomme.json"
    annotations.rename(tmp_path / "secret.json")
    annotations.symlink_to(tmp_path / "secret.json")
    with pytest.raises(DataError, match=r"videomme/videomme.json: links lead out of .*secret.json"):
        read_questions(videomme, tmp_path / "data")
    assert len(read_questions(videomme, tmp_path / "data", follow_links=True)) == 3


def test_media_that_could_not_be_read_are_asked_again_once_they_can(root, tmp_path, monkeypatch):
    """Copied, or allowed as links: what was answered is not asked a second time."""
    data, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(root, data)
    (data / "videomme" / "data" / "a.mp4").rename(tmp_path / "a.mp4")
    (data / "videomme" / "data" / "a.mp4").symlink_to(tmp_path / "a.mp4")
    model, read = shapes.small_model(), set()
    for name in ("read_media", "read_frames"):
        where = model if name == "read_media" else thumbnails
        seen = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda s, *a, seen=seen, **k: (read.add(str(s)), seen(s, *a, **k))[1]
        )

    def ask(**more):
        config = BenchmarkConfig(answers=("letter",), **more)
        (found,) = evaluate_benchmarks(model, ["videomme"], data, config, output=output)
        (path,) = output.glob("*/answers/*/answers.jsonl")
        keys = [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]]
        return found, [grade.status for grade in found.grades["letter"]], keys

    found, statuses, keys = ask()
    assert statuses == ["unreadable"] * 3
    assert sum("--follow-links" in reason for reason in unreadable(found)) == 1
    html.build([found])
    assert read == {str(data / "videomme" / "data" / "b.mp4")}  # missing, not refused
    assert sorted(keys) == ["a-1", "a-2", "b-1"]
    assert ask()[2] == keys  # nothing has changed
    _, statuses, again = ask(follow_links=True)
    assert statuses[2] == "unreadable" not in statuses[:2]
    assert sorted(again[3:]) == ["a-1", "a-2"]
    shutil.copy(tmp_path / "a.mp4", data / "videomme" / "data" / "b.mkv")
    _, statuses, last = ask(follow_links=True)
    assert "unreadable" not in statuses
    assert last[5:] == ["b-1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_an_intact_journal(checkpoint, root, tmp_path, number):
    words = ["--checkpoint", checkpoint, "--tasks", "videomme", "--data-root", root]
    command = [sys.executable, "-m", "elva_jax.cli", "evaluate", *map(str, words)]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path), "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("*/answers/*/answers.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: os.EX_TEMPFAIL}[number]
    assert err.splitlines()[-1].startswith("elva evaluate: ")
    (path,) = tmp_path.glob("*/answers/*/answers.jsonl")
    assert all(json.loads(line) for line in path.read_text().splitlines()[:-1])


def test_ones_own_questions_are_asked_and_judged(checkpoint, root, tmp_path, capsys):
    records = [
        {"video": "a.mp4", "question": "What color?", "options": ["red", "blue"], "answer": "A"},
        {"video": "a.mp4", "question": "What moves?", "answer": "a square"},
        {"video": "gone.mp4", "question": "What moves?", "answer": "a square"},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    media = root / "videomme" / "data"
    words = ("--checkpoint", checkpoint, "--data", file, "--data-root", media)
    assert evaluate(*words, "--json", tmp_path / "r.json") == 3
    out, err = capsys.readouterr()
    assert "own.jsonl" in out
    assert "own_own: 1 questions could not be asked, and are in no score" in err
    (found,) = files.load(tmp_path / "r.json")
    assert [grade.status for grade in found.grades["generated"]].count("unreadable") == 1
    assert found.scores["letter"].main.count == 1  # the other questions have no options
    server = Server()
    try:
        reply = completion('{"pred": "yes", "score": 4}')
        server.answer = lambda handler, *_: send(handler, 200, reply)
        judge = ("--judge", server.url, "--judge-model", "gpt", "--json", tmp_path / "r.json")
        judge += ("--output", tmp_path / "out")
        assert evaluate(*words, *judge) == 3
        (found,) = files.load(tmp_path / "r.json")
        others = {metric.name: metric for metric in found.scores["generated"].others}
        assert (others["judge score"].value, others["judge score"].count) == (4.0, 1)
        assert found.settings["judge"] == "gpt"
        assert len(server.requests) == 2  # the check, and one answer
        assert len(list((tmp_path / "out" / "judge").rglob("*.json"))) == 1
        assert "own_own (judge): 1 of 1 questions" in capsys.readouterr().err
        capsys.readouterr()
        server.answer = lambda handler, *_: send(handler, 401, "wrong key")
        assert evaluate(*words, *judge) == 2
        assert "HTTP 401: wrong key; check --judge" in capsys.readouterr().err
    finally:
        server.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "x.json", "--tasks", "mme"), "--tasks and --data FILE.json are asked apart"),
        (("--data", "x.json", "--judge", "http://localhost"), "--judge needs --judge-model"),
        (("--data", "x.json", "--judge-model", "gpt"), "--judge-model and --judge-cache need"),
        (("--data", "gone.json"), "gone.json: cannot be opened"),
    ],
)
def test_wrong_options_of_own_questions_are_one_line(checkpoint, capsys, options, message):
    try:
        status = evaluate("--checkpoint", checkpoint, *options)
    except SystemExit as exit:
        status = exit.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
