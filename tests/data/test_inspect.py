"""Tests of `elva data inspect` and `elva data show` on annotation files and a built data set."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from elva_jax import cli
from elva_jax.tools.datasets.inspect import spread
from elva_jax.video.read import read_frames


@pytest.fixture
def elva(capsys):
    def run(*words) -> tuple[int, str, str]:
        status = cli.main(["data", *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def notes(tmp_path):
    """An annotation file about four still images, one of them missing, and a folder of frames."""
    root = tmp_path / "media"
    (root / "frames").mkdir(parents=True)
    for k in range(3):
        Image.fromarray(np.full((40 + 20 * k, 80, 3), 60 * k, np.uint8)).save(root / f"{k}.png")
        Image.fromarray(np.full((30, 50, 3), 80 * k, np.uint8)).save(root / "frames" / f"{k}.jpg")
    names = [{"image": f"{k}.png"} for k in range(4)] + [{"video": "frames"}]
    ask = "<{}>\nWhat costs $5 in it, and why does it cost $6?"
    records = [
        {
            **name,
            "conversations": [
                {"from": "human", "value": ask.format(*name)},
                {"from": "gpt", "value": f"Nothing. 無 {k}"},
            ],
        }
        for k, name in enumerate(names)
    ]
    (root / "notes.json").write_text(json.dumps(records))
    return root / "notes.json"


def test_source_is_counted_like_the_data_set_built_from_it(notes, tmp_path, elva):
    status, out, err = elva("inspect", notes, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert out.startswith("4 records, 1 rejected\n1 videos, 3 images, ")
    assert "rejected: 1 x no such file or folder (first: notes.json[3])" in out
    found = json.loads((tmp_path / "out/statistics.json").read_text())["statistics"]
    assert elva("build", notes, "--name", "built", "--data-dir", tmp_path, "--workers", "1")[0] == 0
    built = json.loads((tmp_path / "built/1.0.0/manifest-train.json").read_text())["statistics"]
    found.pop("bytes"), built.pop("bytes")  # building converts the folder of frames to a video
    assert found == built
    status, from_manifest, _ = elva("inspect", "built", "--data-dir", tmp_path)
    assert status == 0
    assert from_manifest.splitlines()[3:] == out.splitlines()[3 : len(from_manifest.splitlines())]


def test_images_show_frames_with_text_and_lengths(notes, tmp_path, elva):
    status, out, _ = elva(
        "inspect", notes, "--out", tmp_path / "out", "--limit", "0", "--examples", "5"
    )
    assert status == 0
    assert out.splitlines()[-3:] == [
        str(tmp_path / "out" / name) for name in ("statistics.json", "sheet.png", "tokens.png")
    ]
    sheet = np.asarray(Image.open(tmp_path / "out/sheet.png"))
    rows = [sheet[6 + 150 * k : 150 * k + 150] for k in range(5)]
    assert [int(row[70, 40, 0]) for row in rows[:3]] == [0, 60, 120]
    assert [
        int(np.abs(rows[4][70, x].astype(int) - shade).max()) <= 2
        for x, shade in ((40, 0), (290, 80), (540, 160))
    ] == [True] * 3
    left = sheet.shape[1] - 512
    assert all((row[:, left:] < 128).any() for row in rows)
    assert (rows[3][:, :left] == 255).all()  # the file does not exist
    assert min(Image.open(tmp_path / "out/tokens.png").size) > 400


def test_part_of_the_records_is_evenly_spread(notes, tmp_path, elva):
    assert list(spread(10, 3)) == [1, 5, 8]
    assert list(spread(10, 0)) == list(spread(10, 10)) == list(range(10))
    _, out, _ = elva("inspect", notes, "--limit", "2")
    assert out.startswith("2 of 5 records, evenly spread:\n1 records, 1 rejected")


def test_text_tokens_are_counted_with_a_tokenizer(notes, tmp_path, tokenizer, elva):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    _, out, _ = elva(
        "inspect", notes, "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "out"
    )
    found = json.loads((tmp_path / "out/statistics.json").read_text())["statistics"]
    chat = [
        {"role": "user", "content": "What costs $5 in it, and why does it cost $6?"},
        {"role": "assistant", "content": "Nothing. 無 0"},
    ]
    assert found["text_tokens"]["min"] == len(
        tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False))
    )
    assert "text tokens" in out


@pytest.mark.parametrize(("index", "name"), [(0, "image.png"), (4, "video")])
def test_one_record_is_exported(notes, tmp_path, elva, index, name):
    status, out, _ = elva("show", notes, "--index", index, "--out", tmp_path / "out")
    assert (status, out) == (0, f"{tmp_path / 'out' / name}\n")
    assert (
        tmp_path / "out/question.txt"
    ).read_text() == "What costs $5 in it, and why does it cost $6?\n"
    assert (tmp_path / "out/answer.txt").read_text() == f"Nothing. 無 {index}\n"
    written = read_frames(tmp_path / "out" / name, num_frames=9).pixels
    original = read_frames(
        notes.parent / ("0.png" if index == 0 else "frames"), num_frames=9
    ).pixels
    assert all((ours == theirs).all() for ours, theirs in zip(written, original, strict=True))
    assert (tmp_path / "out/frames.png").exists()
    assert (
        json.loads((tmp_path / "out/annotation.json").read_text())["turns"][0]["answer"]
        == f"Nothing. 無 {index}"
    )


def test_a_record_replaces_a_pipe_of_its_file_without_waiting(notes, tmp_path, elva):
    for name in ("annotation.json", "question.txt", "frames.png"):
        os.mkfifo(tmp_path / name)
    status, _, _ = elva("show", notes, "--index", 0, "--out", tmp_path)
    assert status == 0
    assert (tmp_path / "question.txt").is_file()
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_records_of_a_built_data_set_are_exported(data_dir, tmp_path, elva):
    status, out, _ = elva(
        "show",
        "moving_shapes/small",
        "--data-dir",
        data_dir,
        "--split",
        "train",
        "--index",
        3,
        "--out",
        tmp_path,
    )
    assert (status, out) == (0, f"{tmp_path / 'image.png'}\n")
    assert set(json.loads((tmp_path / "annotation.json").read_text())) >= {"questions", "captions"}
    assert (tmp_path / "question.txt").read_text() == "What colour is shape 3?\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["show", "NOTES", "--index", "5", "--out", "OUT"],
            "notes.json: no record 5; it has 0 … 4",
        ),
        (["show", "NOTES", "--index", "3", "--out", "OUT"], "3.png: no such file or folder"),
        (["show", "moving_shapes/small", "--root", "OUT", "--out", "OUT"], "--root is for files"),
        (["inspect", "nothing.jsonl"], "nothing.jsonl: cannot be opened"),
        (
            ["inspect", "NOTES", "--verify"],
            "only what `elva data build SOURCE --name …` finished has checksums",
        ),
        (
            ["inspect", "moving_shapes/small", "--split", "none"],
            "no split 'none'; it has other, rotten, train",
        ),
    ],
)
def test_misuse_is_explained_in_one_line(notes, data_dir, tmp_path, elva, words, message):
    words = [{"NOTES": notes, "OUT": tmp_path / "out"}.get(word, word) for word in words]
    status, _, err = elva(*words, "--data-dir", data_dir)
    assert status in (1, 2)
    assert message in err
    assert err.count("\n") == 1


def test_settings_are_not_blamed_on_records(elva, notes, tmp_path):
    """A wrong tokenizer is refused before records are read; a source without usable ones fails."""
    (tmp_path / "empty").mkdir()
    status, out, err = elva("inspect", notes, "--root", tmp_path / "media", "--tokenizer", "empty")
    assert (status, out) == (1, "")
    assert "no tokenizer there" in err
    status, out, err = elva("inspect", notes, "--root", tmp_path / "empty")
    assert status == 1
    assert "0 records, 5 rejected" in out
    assert "none of 5 records is usable" in err


def test_reasons_are_shown_as_they_are(elva, tmp_path):
    """Reasons that differ only in numbers count as one, and the first one is shown."""
    talk = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "1"}]
    path = tmp_path / "n.json"
    path.write_text(json.dumps([{"image": ["x"] * k, "conversations": talk} for k in (1, 3)]))
    _, out, _ = elva("inspect", path)
    assert "rejected: 2 x 2 <image> or <video> markers for 1 media" in out
