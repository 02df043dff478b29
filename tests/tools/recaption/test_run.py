"""Tests of `elva recaption`: resumption, shards, deduplication, filters."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from PIL import Image

from elva_jax.cli import main
from elva_jax.config import schema
from elva_jax.data.sources import open_examples
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.output import open_journal, settings_path
from elva_jax.tools.recaption.prompts import prompt
from elva_jax.video.read import read_frames

from .conftest import CAPTION, completion, read_lines, send


def recaption(server, manifest, *more):
    out = manifest.parent / "captions.jsonl"
    return main(
        [
            "recaption",
            "--manifest",
            str(manifest),
            "--out",
            str(out),
            "--endpoint",
            server.url,
            *(() if "--tries" in more else ("--tries", "2")),
            *more,
        ]
    )


def results(manifest, name="captions"):
    """The captions, and the rejections as {id: reason}."""
    rejected = read_lines(manifest.parent / f"{name}.rejected.jsonl")
    return read_lines(manifest.parent / f"{name}.jsonl"), {
        line["id"]: line["reason"] for line in rejected
    }


def test_captions_are_written_as_llava_conversations(server, manifest):
    path = manifest(3, [{"id": 7, "image": "pictures/0.png/../2.png"}])
    assert recaption(server, path) == 0
    captions, rejected = results(path)
    assert sorted(line["id"] for line in captions) == ["i0", "i1", "i2"]
    for line in captions:
        human, answer = line["conversations"]
        assert line == {
            "id": line["id"],
            "image": f"pictures/{line['id'][1]}.png",
            "conversations": [human, answer],
        }
        assert (human["from"], answer) == ("human", {"from": "gpt", "value": CAPTION})
        assert human["value"].startswith("<image>\n")
    assert rejected == {"7": "duplicate"}


def test_captions_are_a_source_for_training(server, manifest):
    """The output is a source of a mixture; its root is the media folder of the manifest."""
    path = manifest(2)
    assert recaption(server, path) == 0
    examples = open_examples(schema.source(str(path.parent / "captions.jsonl")), "")
    assert {example.media[0].source for example in examples} == {
        str(path.parent / "pictures" / f"{k}.png") for k in range(2)
    }
    assert {turn.answer for example in examples for turn in example.turns} == {CAPTION}
    assert all(read_frames(example.media[0].source, num_frames=1).pixels for example in examples)


def test_captions_of_two_models_are_never_mixed_in_a_file(server, manifest, capsys):
    path = manifest(2)
    assert recaption(server, path, "--model", "first") == 0
    assert recaption(server, path, "--model", "second") == 2
    assert (
        "started with model 'first', now 'second': restore that, or name another --out"
        in capsys.readouterr().err
    )
    assert len(server.requests) == 2
    assert recaption(server, path, "--model", "first") == 0


def test_links_out_of_the_folder_of_media_are_not_followed(server, manifest):
    path = manifest(1, [{"id": "link", "image": "pictures/link.png"}])
    secret = path.parent.parent / "secret.png"
    Image.new("RGB", (30, 30)).save(secret)
    (path.parent / "pictures" / "link.png").symlink_to(secret)
    assert recaption(server, path) == 0
    assert results(path)[1] == {"link": "unreadable"}


def test_a_video_is_sent_as_one_frame_per_second(server, manifest):
    path = manifest(0)
    pictures = [Image.new("RGB", (60, 60), (60 * k, 0, 0)) for k in range(4)]
    pictures[0].save(
        path.parent / "v.gif", save_all=True, append_images=pictures[1:], duration=1000
    )
    path.write_text('{"id": "v", "video": "v.gif", "caption": "red"}\n')
    assert recaption(server, path) == 0
    *media, text = server.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in media] == ["image_url"] * 4
    assert text["text"] == prompt(Item("v", "video", "v.gif", None, "red"))
    ((line,), _) = results(path)
    assert line["video"] == "v.gif"
    assert line["conversations"][0]["value"].startswith("<video>\n")


def test_rejected_answers_are_counted_with_their_reason(server, manifest, capsys):
    path = manifest(
        7,
        [
            {"id": "gone", "image": "gone.png"},
            {"id": "out", "video": "../secret.mp4"},
            {"id": "abs", "image": "/etc/passwd"},
        ],
    )
    odd = {
        0: completion("I'm sorry, but I can't help with that."),
        2: completion(CAPTION, "length"),
        4: completion("red and blue " * 30),
        6: completion(""),
    }

    server.answer = lambda handler, number, request: send(
        handler, 200, odd.get(number, completion())
    )
    assert recaption(server, path, "--concurrency", "1") == 0
    captions, rejected = results(path)
    assert [line["id"] for line in captions] == ["i1", "i3", "i5"]
    unreadable = {"gone": "missing"} | dict.fromkeys(("out", "abs"), "unreadable")
    assert (
        rejected
        == {"i0": "refusal", "i2": "truncated", "i4": "repetition", "i6": "empty"} | unreadable
    )
    printed = capsys.readouterr().out
    assert "3 captions (700 tokens read, 140 written)" in printed
    assert "1 empty, 1 missing, 1 refusal, 1 repetition, 1 truncated, 2 unreadable" in printed
    details = {
        line["id"]: line["detail"] for line in read_lines(path.parent / "captions.rejected.jsonl")
    }
    assert details["gone"] == "no such file or folder"
    assert "--media-dir" in details["out"]
    assert recaption(server, path) == 0
    assert len(server.requests) == 7


def test_failed_requests_are_retried_at_the_next_start(server, manifest, capsys):
    path = manifest(6)
    server.answer = lambda handler, number, request: (
        send(handler, 400, "no") if number in (1, 4) else send(handler, 200, completion())
    )
    assert recaption(server, path) == 1
    assert "2 requests failed, start again" in capsys.readouterr().out
    server.answer = lambda handler, number, request: send(handler, 200, completion())
    assert recaption(server, path) == 0
    assert len(server.requests) == 8
    captions, _ = results(path)
    assert sorted(line["id"] for line in captions) == [f"i{k}" for k in range(6)]


def test_unreachable_endpoint_ends_the_run(server, manifest, capsys):
    path = manifest(40)
    server.answer = lambda handler, number, request: (
        send(handler, 400, "no") if number >= 5 else send(handler, 200, completion())
    )
    assert recaption(server, path, "--concurrency", "1") == 1
    assert "20 requests in a row failed, the last one with: HTTP 400: no" in capsys.readouterr().err
    assert len(results(path)[0]) == 5
    assert 25 <= len(server.requests) <= 26


def test_invalid_key_ends_the_run_immediately(server, manifest, capsys):
    server.answer = lambda handler, number, request: send(handler, 401, "no")
    assert recaption(server, manifest(20), "--concurrency", "2") == 2
    assert "HTTP 401" in capsys.readouterr().err
    assert len(server.requests) <= 4


@pytest.mark.parametrize("debug", [(), ("--debug",)], ids=["plain", "debug"])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 503])
def test_the_key_is_in_no_file_and_no_message(server, manifest, capfd, monkeypatch, status, debug):
    """A server that repeats the key in every kind of answer, whole runs of the command."""
    key = "sk-SECRET/0123"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("ELVA_DEBUG", "0")  # which --debug sets for the whole process
    echoes = [
        completion(f"{CAPTION} {key} {CAPTION}"),
        completion(f"{CAPTION} {key}").replace("/", "\\/"),  # as JSON may write it
        f'{{"wrong": "{key}"}}',
        f"{' ' * 60}{key}",
    ]
    server.answer = lambda handler, number, request: send(
        handler, status, echoes[number % len(echoes)], [("Location", f"http://{key}@host/{key}")]
    )
    server.url = server.url.replace("//", "//me:passw0rd@")
    path = manifest(8)
    more = ("--concurrency", "1", "--tries", "1", *debug)
    assert recaption(server, path, *more) in (0, 1, 2)
    assert server.headers[0][1]["Authorization"]
    shown = capfd.readouterr()
    texts = {"stdout": shown.out, "stderr": shown.err}
    texts |= {f.name: f.read_text("latin-1") for f in path.parent.rglob("*") if f.is_file()}
    assert len(texts) > 4
    for name, text in texts.items():
        assert "SECRET" not in text, name
        assert "passw0rd" not in text, name


def test_requested_number_of_requests_runs_concurrently(server, manifest):
    meeting, lock, now, most = threading.Barrier(3, timeout=20), threading.Lock(), [0], [0]

    def meet(handler, number, request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        meeting.wait()  # passes only if three requests run concurrently
        with lock:
            now[0] -= 1
        send(handler, 200, completion())

    server.answer = meet
    path = manifest(12)
    assert recaption(server, path, "--concurrency", "3") == 0
    assert len(results(path)[0]) == 12
    assert most[0] == 3


def test_restart_after_a_kill_leaves_neither_duplicates_nor_gaps(server, manifest):
    path = manifest(12)
    out, hold = path.parent / "captions.jsonl", threading.Event()

    def stuck_after_five(handler, number, request):
        if number >= 5:
            hold.wait(60)
        send(handler, 200, completion())

    server.answer = stuck_after_five
    options = [
        "--manifest",
        str(path),
        "--out",
        str(out),
        "--endpoint",
        server.url,
        "--concurrency",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "elva_jax.cli", "recaption", *options], stdout=subprocess.DEVNULL
    )
    try:
        while not (out.exists() and out.read_bytes().count(b"\n") == 5):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    hold.set()
    first = out.read_bytes()
    # A possible state after a crash of the machine.
    out.write_bytes(first + b'{"id": "i5", "image": "pictures/5.p')
    assert recaption(server, path) == 0
    captions, _ = results(path)
    assert Counter(line["id"] for line in captions) == Counter(f"i{k}" for k in range(12))
    assert out.read_bytes().startswith(first)
    asked = len(server.requests)
    assert recaption(server, path) == 0
    assert len(server.requests) == asked
    assert out.read_bytes().count(b"\n") == 12


def test_a_wrong_folder_of_media_marks_no_item(server, manifest, tmp_path, capsys):
    path, wrong = manifest(2), tmp_path / "wrong"
    wrong.mkdir()
    for folder, said in ((wrong, "none of the first 2 media"), (tmp_path / "no", "no such folder")):
        assert recaption(server, path, "--media-dir", str(folder)) == 2
        assert f"--media-dir {folder}: {said}" in capsys.readouterr().err
    assert [file.name for file in tmp_path.glob("captions*")] == []


def test_a_medium_that_was_missing_is_described_once_it_is_there(server, manifest):
    path = manifest(2)
    away = path.parent / "pictures/0.png"
    away.rename(path.parent / "0.png")
    assert recaption(server, path) == 0
    assert results(path)[1] == {"i0": "missing"}
    (path.parent / "0.png").rename(away)
    assert recaption(server, path) == 0
    assert sorted(line["id"] for line in results(path)[0]) == ["i0", "i1"]


def test_shards_cover_every_medium_once(server, manifest):
    same = [{"id": f"again{k}", "image": f"copies/{k}.png"} for k in range(8)]
    path = manifest(20, [*same, {"id": "gone", "image": "gone.png"}])
    (path.parent / "copies").mkdir()
    for k in range(8):
        os.link(path.parent / f"pictures/{k}.png", path.parent / f"copies/{k}.png")
    ids, reasons, sizes = Counter(), Counter(), []
    for k in range(3):
        assert recaption(server, path, "--shard", f"{k}/3") == 0
        captions, rejected = results(path, f"captions-{k:05d}-of-00003")
        ids.update(line["id"] for line in captions)
        reasons.update(rejected.items())
        sizes.append(len(captions))
    assert ids == Counter(f"i{k}" for k in range(20))
    assert reasons == Counter(
        [*((f"again{k}", "duplicate") for k in range(8)), ("gone", "missing")]
    )
    assert min(sizes) > 0


def test_files_of_equal_size_are_distinguished_by_their_content(server, manifest):
    path = manifest(0)
    lines = []
    for k, gray in enumerate((10, 20, 10)):
        (path.parent / f"{k}.ppm").write_bytes(b"P6 40 40 255\n" + bytes([gray]) * 4800)
        lines.append(json.dumps({"id": str(k), "image": f"{k}.ppm"}))
    path.write_text("\n".join(lines))
    assert recaption(server, path) == 0
    captions, rejected = results(path)
    assert sorted(line["id"] for line in captions) == ["0", "1"]
    assert rejected == {"2": "duplicate"}


def test_dry_run_estimates_and_writes_nothing(server, manifest, capsys):
    path = manifest(5)
    assert recaption(server, path, "--dry-run", "--gpus", "2") == 0
    printed = capsys.readouterr().out
    assert "5 requests (5 images, 0 videos)" in printed
    # Images of 30 to 34 by 40 pixels are enlarged to 56 by 84, which is 6 tokens. A caption is
    # assumed to have 250 tokens.
    text = len(prompt(Item("i0", "image", "", None))) // 4
    assert f"about {5 * (6 + text):,} tokens to read and 1,250 to write" in printed
    # In the paper, 3M images take 2 days on 16 GPUs: 0.92 s per image on one GPU, half on two.
    assert "about 2 s on 2 A100" in printed
    assert server.requests == []
    assert sorted(os.listdir(path.parent)) == ["manifest.jsonl", "pictures"]


def test_two_processes_cannot_write_the_same_file(server, manifest, capsys):
    path = manifest(2)
    out = path.parent / "captions.jsonl"
    with open_journal(out, settings_path(out), "conversations"):
        assert recaption(server, path) == 1
    assert "another process writes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "manifest.jsonl:2: "),
        ("[]", "not a JSON object"),
        ('{"id": "1"}', "needs either 'image' or 'video'"),
        ('{"id": "1", "image": "a", "video": "b"}', "needs either"),
        ('{"image": "a"}', "'id' is missing"),
        ('{"id": "1", "image": ["a"]}', "'image' is not a path"),
        ('{"id": "1", "image": "a", "caption": 3}', "'caption' is not text"),
        ('{"id": "1", "image": "a", "objects": "cat"}', "'objects' is not a list of strings"),
        ('{"id": "0", "image": "a"}', "id '0' occurs twice"),
        ("\udcff", "manifest.jsonl:2: "),
        ('{"id": "1", "image": "\\ud800"}', "manifest.jsonl:2: "),
        ("[" * 10**5, "manifest.jsonl:2: "),
    ],
)
def test_invalid_manifest_line_is_named_before_any_request(server, tmp_path, capsys, line, message):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(
        b'{"id": "0", "image": "0.png"}\n' + line.encode(errors="surrogateescape") + b"\n"
    )
    assert recaption(server, path) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "manifest.jsonl:2: " in error
    assert len(error.splitlines()) == 1
    assert server.requests == []


@pytest.mark.parametrize("shard", ["1", "3/3", "-1/3", "a/b", "0/0"])
def test_invalid_shard_is_refused(server, tmp_path, capsys, shard):
    with pytest.raises(SystemExit):
        recaption(server, tmp_path / "m.jsonl", f"--shard={shard}")
    assert "--shard" in capsys.readouterr().err


FOREIGN = ("no newline", '{"id": "a", "text": "mine"}\n', "mine\n", '{"id": "a"', "[1]\n", "\0")


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.rejected.jsonl"])
@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("started", [False, True])
def test_a_file_of_something_else_is_not_changed(server, manifest, capsys, name, content, started):
    path = manifest(1)
    if started:
        assert recaption(server, path) == 0
        if content == '{"id": "a"':  # what a killed run may leave
            return
    for file in (path.parent / name, path.parent / "copy.jsonl"):
        file.write_text(content)
    before = sorted(os.listdir(path.parent))
    for _ in range(2):  # the refusal leaves nothing that would allow the next start
        assert recaption(server, path) == 1
        assert (path.parent / name).read_text() == content
    assert str(path.parent / name) in capsys.readouterr().err
    assert set(os.listdir(path.parent)) - set(before) <= {"captions.jsonl"}


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.rejected.jsonl"])
@pytest.mark.parametrize("link", [os.link, os.symlink, os.rename])
def test_the_manifest_is_not_an_output(server, manifest, name, link):
    path = manifest(1)
    path.write_text(content := path.read_text().rstrip())
    out = path.parent / name
    link(path, out)
    assert recaption(server, out if link is os.rename else path) == 2
    assert out.read_text() == content


def test_settings_are_only_written_once(server, manifest):
    path = manifest(1)
    assert recaption(server, path) == 0
    settings = path.parent / "captions.settings.json"
    settings.write_text(content := json.dumps(json.loads(settings.read_text()) | {"mine": 1}))
    assert recaption(server, path) == 0
    assert settings.read_text() == content
