"""`elva generate --input`: a file of questions in, a file of answers out, killed or not."""

import base64
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletion

import elva_jax
from elva_jax import testing
from elva_jax.cli import main
from elva_jax.errors import StartError
from elva_jax.inference.batch_file.index import QuestionFile
from elva_jax.inference.batch_file.run import FileConfig, answer_file, shard_path
from elva_jax.inference.batches.queries import Writing
from elva_jax.utils import owner

NEW = 4
HYBRID = {"high_frames": 1, "low_frames": 2, "high_edge": 32, "low_edge": 16, "policy": "ends"}
PROFILES = (
    "half=merge_policies=ratio;merge_ratios=0.8",
    "late=merge_layers=2;merge_policies=ratio;merge_ratios=.9;merge_thresholds=1",
)


def small_model(seed=0):
    """It merges by ratio: clips of one size keep one length, so programs are shared."""
    return testing.tiny_model(seed, merge_policies=("ratio", "ratio"), merge_ratios=(0.6, 0.6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, three clips and the questions about them, of which four cannot be asked."""
    folder = tmp_path_factory.mktemp("file")
    small_model().save_pretrained(folder / "tiny")
    for k, color in enumerate(("red", "green", "blue")):
        testing.write_video(folder / f"{k}.mp4", testing.tiny_video(color=color, seed=k))
    data = "data:video/mp4;base64," + base64.b64encode((folder / "1.mp4").read_bytes()).decode()
    turns = [("human", "<video>\nWhat?"), ("gpt", "Red."), ("human", "Where?"), ("gpt", "Left.")]
    rows = [
        {"id": "a", "video": "0.mp4", "prompt": "What moves?", "max_tokens": 3},
        {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body("2.mp4")},
        {"question_id": 7, "media": ["1.mp4"], "text": "What moves?"},
        {"id": "gone", "image": "gone.png", "prompt": "What?"},
        {"video": "0.mp4", "conversations": [{"from": f, "value": v} for f, v in turns]},
        {"custom_id": "r2", "url": "/v1/chat/completions", "body": body(data, model="m")},
        {"custom_id": "r3", "url": "/v1/chat/completions", "body": body("http://x/1.mp4")},
        {"id": "\ud800", "video": "0.mp4", "prompt": "Where to?", "temperature": 2, "seed": 5},
        {"id": "typo", "vidoe": "0.mp4", "prompt": "What?"},
    ]
    own = [{"merging": False}, {"merging": "half"}, {**HYBRID, "merging": "late"}]
    own += [{"merging": "Half"}, {"high_frames": 2, "nframes": 2}, {"policy": "most"}]
    plain = [{"id": n, "video": "0.mp4", "prompt": "What moves?", **m} for n, m in enumerate(own)]
    plain.append({"custom_id": "c", "body": body("0.mp4", **HYBRID, merging="late")})
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, plain)))
    lines = [*map(json.dumps, rows), "{broken"]
    (folder / "q.jsonl").write_text("\n".join(lines))
    return folder


def body(url, **more):
    part = {"type": "video_url", "video_url": {"url": url}}
    content = [part, {"type": "text", "text": "What moves?"}]
    return {"messages": [{"role": "user", "content": content}], **more}


def words(folder, output, *more, name="q.jsonl"):
    given = ["generate", "--checkpoint", folder / "tiny", "--input", folder / name]
    return [*map(str, (*given, "--output", output, "--max-new-tokens", NEW, *more))]


@pytest.fixture(scope="module")
def done(folder):
    """The output of one run, with its status."""
    status = main(words(folder, folder / "out" / "a.jsonl"))
    return status, read(folder / "out" / "a.jsonl")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_of(line):
    """The answer of a line in any form; None where it has an error."""
    if "custom_id" not in line:
        return line.get("answer")
    found = line["response"]["body"]
    return found and found["choices"][0]["message"]["content"]


def test_answers_are_the_model_s_own_in_the_order_of_the_rows(folder, done):
    status, lines = done
    assert status == 3
    names = [line.get("custom_id", line.get("id")) for line in lines]
    assert names == ["a", "r1", 7, "gone", None, "r2", "r3", "\ud800", "typo", None]
    model = elva_jax.load(folder / "tiny")
    own = [
        model.answer(str(folder / f"{k}.mp4"), "What moves?", max_new_tokens=most)
        for k, most in ((0, 3), (2, NEW), (1, NEW))
    ]
    assert [text_of(line) for line in lines[:3]] == own
    assert text_of(lines[5]) == own[2]
    chat = elva_jax.Sampling(temperature=2.0, seed=5)
    drawn = model.answer(str(folder / "0.mp4"), "Where to?", max_new_tokens=NEW, sampling=chat)
    assert text_of(lines[7]) == drawn
    assert (lines[4]["reference"], lines[0]["finish_reason"]) == ("Left.", "length")
    assert lines[0]["usage"] == {"prompt_tokens": 112, "completion_tokens": 3, "total_tokens": 115}
    assert lines[0]["merged_tokens"][0] < 112
    assert [line["index"] for line in lines if "index" in line] == [0, 2, 3, 4, 7, 8, 9]


def test_merging_and_sizes_of_frames_by_row(folder, tmp_path, capsys):
    """Answers and merged tokens are those of the model with the same settings."""
    named = [word for text in PROFILES for word in ("--merging-profile", text)]
    line = words(folder, tmp_path / "a.jsonl", *named, name="own.jsonl")
    assert main(line) == 3
    lines = read(tmp_path / "a.jsonl")
    model = elva_jax.load(folder / "tiny")
    model.add_merging_profiles(*PROFILES)
    hybrid = model.hybrid(**HYBRID)
    settings = [(False, None), ("half", None), ("late", hybrid)]
    counts = []
    for line, (how, frames) in zip(lines, settings, strict=False):
        media = model.read_all(str(folder / "0.mp4"), frames)
        trace = model.trace(media, "What moves?", max_new_tokens=NEW, merging=how)
        assert line["answer"] == trace.answer.text
        assert line["usage"]["prompt_tokens"] == trace.prompt_tokens
        counts.append(tuple(line["merged_tokens"]))
        assert counts[-1] == tuple(merge.after for merge in trace.merges)
    assert len(set(counts)) == len(counts)
    assert text_of(lines[6]) == lines[2]["answer"]
    errors = [line["error"]["message"] for line in lines[3:6]]
    assert "merging: must be true, false or half, late, got Half" in errors[0]
    assert "high_frames: does not go together" in errors[1]
    assert "policy" in errors[2]
    capsys.readouterr()
    named[-1] = named[-1].replace(".9", ".7")
    assert main(words(folder, tmp_path / "a.jsonl", *named, name="own.jsonl")) == 1
    assert "merging_profiles" in capsys.readouterr().err


def test_merging_named_for_all_rows_is_that_of_one_video(folder, tmp_path, capsys):
    """`--input` and `--video` with the same --merging; rows without a setting of their own."""
    rows = [{"video": f"{k}.mp4", "prompt": "Where to?"} for k in (1, 2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--merging-profile", PROFILES[1], "--merging", "late", "--temperature", "2"]
    line = words(folder, tmp_path / "a.jsonl", *options, "--media-dir", str(folder))
    line[line.index("--input") + 1] = str(tmp_path / "q.jsonl")
    assert main(line) == 0
    capsys.readouterr()
    line = ["generate", "--checkpoint", str(folder / "tiny"), "--max-new-tokens", str(NEW)]
    line += ["--video", str(folder / "1.mp4"), "--prompt", "Where to?", "--json"]
    assert main([*line, *options]) == 0
    alone, found = json.loads(capsys.readouterr().out), read(tmp_path / "a.jsonl")[0]
    after = [merge["after"] for merge in alone["tokens"]["merging"]]
    assert (found["answer"], found["merged_tokens"]) == (alone["answer"], after)
    assert len(after) == 1  # the model itself has two merging layers


def test_openai_s_lines_and_rows_that_cannot_be_asked(folder, done):
    _, lines = done
    response, failed = lines[1]["response"], lines[6]
    assert (response["status_code"], lines[1]["error"]) == (200, None)
    found = response["body"]
    ChatCompletion.model_validate(found, strict=True)
    assert found["model"] == str(folder / "tiny")
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == NEW
    assert lines[5]["response"]["body"]["model"] == "m"
    assert (failed["response"]["status_code"], failed["response"]["body"]) == (400, None)
    assert failed["error"]["param"] == "messages"
    assert "http://x/1.mp4" in failed["error"]["message"]
    errors = [line["error"]["message"] for line in (lines[3], *lines[8:])]
    assert errors[0] == f"{folder / 'gone.png'}: no such file or folder"
    assert errors[1].startswith("q.jsonl:9: names no medium")
    assert errors[2].startswith("q.jsonl:10: is not JSON")


def test_a_killed_run_continues_with_what_is_missing(folder, done, tmp_path, capsys):
    output = tmp_path / "a.jsonl"
    command = [sys.executable, "-m", "elva_jax.cli", *words(folder, output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journals = tmp_path.glob("a.jsonl.journal/*/answers.jsonl")
    while not (path := next(iter(list(journals)), None)) or path.read_bytes().count(b"\n") < 7:
        assert process.poll() is None
        journals = tmp_path.glob("a.jsonl.journal/*/answers.jsonl")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    with path.open("a") as file:
        file.write('{"key": "0", "ha')  # what a kill in the midst of a write leaves
    before = path.read_bytes().split(b"\n")[1:-1]
    assert main(words(folder, output)) == 3
    after = path.read_bytes().split(b"\n")[1:-1]
    assert after[: len(before)] == before
    assert sorted(int(json.loads(line)["key"]) for line in after) == [*range(10)]
    assert [text_of(line) for line in read(output)] == [text_of(line) for line in done[1]]
    size = path.stat().st_size
    capsys.readouterr()
    assert main(words(folder, output)) == 3  # nothing is asked again
    assert path.stat().st_size == size
    assert "4 rows could not be asked: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--temperature", "1"), "another run (temperature: 0.0, now 1.0); name another --output"),
        (("--frames", "2"), "another run (frames: 4, now 2)"),
        (("--no-merging",), "another run (merging: True, now False)"),
    ],
)
def test_answers_of_other_settings_are_refused(folder, done, capsys, more, message):
    assert main(words(folder, folder / "out" / "a.jsonl", *more)) == 1
    assert message in capsys.readouterr().err


def test_other_weights_and_other_rows_are_refused(folder, done, tmp_path, capsys):
    copy = tmp_path / "file"
    shutil.copytree(folder, copy)
    small_model(seed=1).save_pretrained(copy / "other")
    given = words(copy, copy / "out" / "a.jsonl")
    given[2] = str(copy / "other")
    assert main(given) == 1
    assert "another run (weights_hash: " in capsys.readouterr().err
    rows = (copy / "q.jsonl").read_text()
    (copy / "q.jsonl").write_text(rows.replace("What moves?", "What stands?", 1))
    assert main(words(copy, copy / "out" / "a.jsonl")) == 1
    assert "row 0 is not the one of the input any more" in capsys.readouterr().err


def test_what_is_there_is_not_overwritten(folder, tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert main(words(folder, tmp_path / "mine.jsonl")) == 2
    assert "mine.jsonl.journal, with which it could be continued, is not" in capsys.readouterr().err
    assert main(words(folder, folder / "q.jsonl")) == 2
    assert "is the input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--video", "x"], "required: --prompt"),
        (["--input", "x"], "--input needs --output"),
        (["--input", "x", "--output", "y", "--prompt", "z"], "leave out --video, --prompt"),
        (["--video", "x", "--prompt", "y", "--shard", "0/2"], "--shard needs --input"),
        (["--video", "x", "--prompt", "y", "--output", "z"], "--output needs --input"),
        (["--input", "x", "--output", "y", "--shard", "2/2"], "I counts from 0 to N-1"),
    ],
)
def test_misuse_is_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--checkpoint", "none", *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def ask(folder):
    """Answers the file in this process, and returns the result with the media that were read."""
    model, writing = elva_jax.load(folder / "tiny"), Writing(max_new_tokens=NEW)

    def answer(output, **more):
        seen = []

        class Watched(type(model)):
            def read_media(self, source, **more):
                seen.append(source)
                return super().read_media(source, **more)

        watched = object.__new__(Watched)
        watched.__dict__.update(model.__dict__)
        questions = QuestionFile(folder / "q.jsonl", None, writing)
        config = FileConfig(writing=writing, **more)
        return answer_file(watched, questions, output, {}, config), seen

    return answer


def test_shards_are_parts_and_read_each_medium_once(ask, done, tmp_path):
    lines, read_media = {}, []
    for index in range(3):
        output = shard_path(tmp_path / "a.jsonl", (index, 3))
        assert output.name == f"a-0000{index}-of-00003.jsonl"
        result, seen = ask(output, shard=(index, 3))
        found = read(output)
        assert (result.rows, result.failed) == (
            len(found),
            sum("error" in x and bool(x["error"]) for x in found),
        )
        lines |= {json.dumps(x.get("custom_id", x.get("index"))): x for x in found}
        read_media += seen
    assert len(lines) == 10
    in_order = [lines[json.dumps(x.get("custom_id", x.get("index")))] for x in done[1]]
    assert [text_of(line) for line in in_order] == [text_of(line) for line in done[1]]
    names = [Path(x).name if isinstance(x, str) else "bytes" for x in read_media]
    assert sorted(names) == ["0.mp4", "1.mp4", "2.mp4", "bytes", "gone.png"]


def test_processes_share_the_rows(ask, done, tmp_path):
    """Three, of which one never begins; then one more finds everything answered."""
    output = tmp_path / "a.jsonl"
    threads = [
        threading.Thread(target=ask, args=(output,), kwargs={"process": (index, 3)})
        for index in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text_of(line) for line in read(output)] == [text_of(line) for line in done[1]]
    journals = list(tmp_path.glob("a.jsonl.journal/*/answers.jsonl"))
    assert len(journals) == 3
    keys = [json.loads(line)["key"] for p in journals for line in p.read_text().splitlines()[1:]]
    assert sorted(map(int, keys)) == [*range(10)]
    _, seen = ask(output)
    assert seen == []


def test_an_output_in_use_is_refused(ask, tmp_path):
    folder = tmp_path / "a.jsonl.journal"
    folder.mkdir()
    with owner.own(folder), pytest.raises(StartError, match="is in use"):
        ask(tmp_path / "a.jsonl")
